"""Word vectors: nearest neighbours, analogies, and file formats.

Lexloom's own format is safetensors and JSON; word2vec's text and binary formats are for other tools.

Shapes: V words, dim floats per vector, Q queries.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize, pad

from lexloom.models.normalization import Normalization, normalize_text, read_normalization

_QUERY_BLOCK = 512
_SCORES = 1 << 20  # computed at a time, 4 MB: about the size of a cache
_GROUP = 64  # words with consecutive ids
_SPAN = 4096 * _GROUP  # words whose groups' maxima are kept at a time
_GATHERED_FLOATS = 1 << 24  # of candidate words' vectors at a time, 64 MB
_NORM_ROWS = 1 << 16  # whose float64 copies are in memory at a time
_MAX_HEADER_BYTES = 64  # two numbers
_MAX_SPELLINGS = 50_000  # words compared to find a similar spelling, which takes 10 microseconds per word

Neighbours = list[tuple[str, float]]
_Row = tuple[bytes, np.ndarray | list[float]]  # of a file: word, vector


class UnknownWordError(KeyError):
    """A word that is not in the vocabulary; str() is a message for the user."""

    def __str__(self) -> str:
        return str(self.args[0])


class WordVectors:
    """One vector per word.

    Args:
        words: V distinct words; a word's index is its id.
        vectors: (V, dim) float32, finite.
        normalization: the rules that normalized the training text. Unknown words are normalized by them
            before they are looked up.

    Raises:
        ValueError: the lengths differ, a word occurs twice, or a number is not finite.
    """

    def __init__(
        self,
        words: Sequence[str],
        vectors: Tensor | np.ndarray,
        normalization: Normalization | None = None,
    ) -> None:
        self.words = list(words)
        self.normalization = normalization
        self.vectors = torch.as_tensor(vectors, dtype=torch.float32).contiguous()
        self._ids = {word: i for i, word in enumerate(self.words)}
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words):
            raise ValueError(
                f"{len(self.words)} words do not match vectors of shape {tuple(self.vectors.shape)}"
            )
        if len(self._ids) != len(self.words):
            twice = next(word for i, word in enumerate(self.words) if self._ids[word] != i)
            raise ValueError(
                f"the word '{twice}' occurs twice in the vocabulary: every word must have one row"
            )
        norms = torch.cat(  # (V,) float64, no overflow; in pieces, which are copied to float64
            [
                torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
                for rows in self.vectors.split(_NORM_ROWS)
            ]
        )
        if not norms.isfinite().all():
            row = int((~norms.isfinite()).nonzero()[0])
            raise ValueError(f"the vector of '{self.words[row]}' (row {row}) is not finite")
        self._inverse_norms = (1.0 / norms.clamp_min(torch.finfo(torch.float32).tiny)).float()

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.spelling(word) in self._ids

    def spelling(self, word: str) -> str:
        """Return the word as it is in the vocabulary; normalized if it is not there."""
        return word if word in self._ids else normalize_text(word, self.normalization)

    def __getitem__(self, word: str) -> Tensor:
        """The word's vector, (dim,). Raises UnknownWordError."""
        return self.vectors[self._id(word)]

    def _id(self, word: str) -> int:
        spelling = self.spelling(word)
        if spelling in self._ids:
            return self._ids[spelling]
        if not spelling:
            raise UnknownWordError(
                f"this model's normalization removes all of '{word}': use a word with letters"
            )
        parts = spelling.split()
        if len(parts) > 1:
            raise UnknownWordError(
                f"this model splits '{word}' into {len(parts)} words ({', '.join(parts)}): use one of them"
            )
        alike = [spelling.lower()] if spelling.lower() in self._ids else []
        near = alike or get_close_matches(spelling, self.words[:_MAX_SPELLINGS])
        hint = f"; similar words: {', '.join(near)}" if near else ""
        raise UnknownWordError(f"'{spelling}' is not in the vocabulary of {len(self):,} words{hint}")

    def _unit(self, ids: list[int]) -> Tensor:
        return self.vectors[ids] * self._inverse_norms[ids, None]

    def neighbours(self, words: Sequence[str], k: int = 10) -> list[Neighbours]:
        """Find the k other words with the highest cosine similarity to each word, exactly; best first.

        Raises:
            UnknownWordError: a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in words]
        return self._nearest(self._unit(ids), k, torch.tensor(ids, dtype=torch.long).view(-1, 1))

    def neighbours_of(self, vectors: Tensor | np.ndarray, k: int = 10) -> list[Neighbours]:
        """Find the k words with the highest cosine similarity to each vector, (Q, dim); best first."""
        queries = torch.as_tensor(vectors, dtype=torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"the vectors have the shape {tuple(queries.shape)}: it must be (Q, {self.vectors.shape[1]})"
            )
        return self._nearest(normalize(queries), k, torch.empty(len(queries), 0, dtype=torch.long))

    def analogy(self, a: str, b: str, c: str, k: int = 5) -> Neighbours:
        """Solve "a is to b as c is to what?": the k words with the highest cosine to b - a + c, best first
        (3CosAdd).

        The vectors of a, b and c are normalized to length 1 first; the three words are excluded.

        Raises:
            UnknownWordError: a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in (a, b, c)]
        unit_a, unit_b, unit_c = self._unit(ids)
        return self._nearest(normalize((unit_b - unit_a + unit_c)[None]), k, torch.tensor([ids]))[0]

    def _nearest(self, queries: Tensor, k: int, excluded: Tensor) -> list[Neighbours]:
        """Search in blocks. queries: (Q, dim) of length 1; excluded: (Q, E) ids."""
        if k < 1:
            raise ValueError(f"k is {k}: it must be at least 1")
        found: list[Neighbours] = []
        for first in range(0, len(queries), _QUERY_BLOCK):
            block = slice(first, first + _QUERY_BLOCK)
            scores, ids = self._top(queries[block], k, excluded[block])
            for row in zip(ids.tolist(), scores.tolist(), strict=True):
                found.append([(self.words[i], s) for i, s in zip(*row, strict=True) if s > -torch.inf])
        return found

    def _top(self, queries: Tensor, k: int, excluded: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and ids of each query's k best words, (Q, k) each; an excluded word has a score of
        -inf.

        The k best words are within the k groups with the highest maxima. So of most scores only the groups'
        maxima are kept, while the scores are still in the CPU's cache.
        """
        best, top_groups = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self), _SPAN):
            maxima = self._maxima(queries, excluded, start, min(start + _SPAN, len(self)))
            groups = (start // _GROUP + torch.arange(maxima.shape[1])).expand(len(queries), -1)
            best, top_groups = torch.cat([best, maxima], 1), torch.cat([top_groups, groups], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            top_groups = top_groups.gather(1, order)
        floats = max(1, top_groups.shape[1] * _GROUP * self.vectors.shape[1])  # per query
        at_once = max(1, _GATHERED_FLOATS // floats)
        parts = zip(*(part.split(at_once) for part in (queries, excluded, top_groups)), strict=True)
        found = [self._top_within(some, out, groups, k) for some, out, groups in parts]
        scores, ids = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(ids)

    def _maxima(self, queries: Tensor, excluded: Tensor, start: int, end: int) -> Tensor:
        """Return the best score in each group of the words start .. end - 1, (Q, groups)."""
        size = max(_GROUP, min(_SPAN, _SCORES // len(queries) // _GROUP * _GROUP))
        maxima = torch.empty(len(queries), -(-(end - start) // _GROUP))
        for first in range(start, end, size):
            block = slice(first, min(first + size, end))
            # (block, Q), so that maxima over rows use whole registers
            scores = (self.vectors[block] @ queries.T).mul_(self._inverse_norms[block, None])
            here = (excluded >= block.start) & (excluded < block.stop)  # (Q, E)
            scores[excluded[here] - first, here.nonzero()[:, 0]] = -torch.inf
            if missing := -len(scores) % _GROUP:
                scores = pad(scores, (0, 0, 0, missing), value=-torch.inf)
            group = (first - start) // _GROUP
            maxima[:, group : group + len(scores) // _GROUP] = scores.unflatten(0, (-1, _GROUP)).amax(1).T
        return maxima

    def _top_within(self, queries: Tensor, excluded: Tensor, groups: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Same as `_top`, but only for the words in some groups, (Q, G)."""
        ids = (groups[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)  # (Q, G * _GROUP)
        beyond, ids = ids >= len(self), ids.clamp(max=len(self) - 1)  # the last group may be smaller
        scores = (self.vectors[ids] @ queries[:, :, None]).squeeze(2) * self._inverse_norms[ids]
        scores[beyond | (ids[:, :, None] == excluded[:, None, :]).any(2)] = -torch.inf
        best, order = scores.topk(min(k, scores.shape[1]), dim=1)
        return best, ids.gather(1, order)

    # Lexloom's own format: safetensors and JSON.

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` (one tensor, `vectors`) and `vocabulary.json` (word -> id)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model.safetensors"
        model.touch()
        mode = model.stat().st_mode
        save_file({"vectors": self.vectors}, model)
        model.chmod(mode)  # save_file makes files that are only readable by their owner; a store is shared
        (folder / "vocabulary.json").write_text(json.dumps(self._ids, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "WordVectors":
        """Read what `save` wrote, and the normalization that the folder's `config.json` records.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the two do not match.
        """
        model, vocabulary = Path(folder) / "model.safetensors", Path(folder) / "vocabulary.json"
        for path in (model, vocabulary):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {folder} does not contain word vectors")
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{vocabulary} is not JSON ({error}): save it again") from None
        if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
            raise ValueError(f"{vocabulary} does not map words to ids: save it again")
        words = sorted(ids, key=ids.__getitem__)
        if [ids[word] for word in words] != list(range(len(words))):
            raise ValueError(f"{vocabulary}: the ids are not 0 to {len(words) - 1}: save it again")
        try:
            vectors = load_file(model)["vectors"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{model} has no tensor 'vectors' ({error}): save it again") from None
        rules = read_normalization(folder)
        try:
            return cls(words, vectors, rules)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from None

    # The formats of word2vec.c, which gensim and other tools read.

    def save_word2vec(self, path: str | Path, *, binary: bool) -> None:
        """Write word2vec's text or binary format. Text has nine digits per number, which is exact for
        float32.

        Raises:
            ValueError: a word is empty, contains a space or a line break, or is not valid Unicode.
        """
        names = [_writable(row, word) for row, word in enumerate(self.words)]
        words, dim = self.vectors.shape
        numbers = " ".join(["%.9g"] * dim) + "\n"
        with open(path, "wb") as file:
            file.write(b"%d %d\n" % (words, dim))
            for name, vector in zip(names, self.vectors.numpy(), strict=True):
                file.write(name + b" ")
                if binary:
                    file.write(vector.astype("<f4", copy=False).tobytes() + b"\n")
                else:
                    file.write((numbers % tuple(vector.tolist())).encode())

    @classmethod
    def load_word2vec(cls, path: str | Path, *, binary: bool) -> "WordVectors":
        """Read word2vec's text or binary format, as word2vec.c, gensim and `save_word2vec` write it.

        Raises:
            ValueError: the file has another format, is truncated, or contains a number that is not finite;
                the message has the row, counted from 1.
        """
        with open(path, "rb") as file:
            words, dim = _header(path, file, binary)
            names: list[str] = []
            matrix = np.empty((words, dim), dtype=np.float32)
            read_rows = _binary_rows if binary else _text_rows
            for row, (name, vector) in enumerate(read_rows(path, file, words, dim)):
                try:
                    names.append(name.decode())
                except UnicodeDecodeError:
                    raise _malformed(path, row, f"the word {name[:40]!r} is not UTF-8") from None
                with np.errstate(over="ignore"):  # overflow gives infinity, which is checked below
                    matrix[row] = vector
        finite = np.isfinite(matrix).all(axis=1)  # (V,)
        if not finite.all():
            row = int(finite.argmin())
            raise _malformed(path, row, f"the vector of '{names[row]}' has a number that is not finite")
        try:
            return cls(names, matrix)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def save_word2vec_counts(words: Sequence[str], counts: Sequence[int], path: str | Path) -> None:
    """Write words and counts in the format of word2vec.c's `-save-vocab`, gensim's `fvocab`.

    Raises:
        ValueError: a word contains white space (`has_white_space`), at which gensim splits lines.
    """
    for row, word in enumerate(words):
        if has_white_space(word):
            raise ValueError(
                f"the word {word!r} (row {row + 1}) contains white space, which this format does not support:"
                " remove it"
            )
    with open(path, "wb") as file:
        for word, count in zip(words, counts, strict=True):
            file.write(f"{word} {count}\n".encode())


def has_white_space(word: str) -> bool:
    """Whether a word contains white space of any script, such as U+00A0."""
    return word.split() != [word]


def _writable(row: int, word: str) -> bytes:
    with suppress(UnicodeEncodeError):
        if word and " " not in word and "\n" not in word:
            return word.encode()
    raise ValueError(
        f"the word {word!r} (row {row + 1}) can't be written in word2vec's format, where words are UTF-8, "
        f"not empty, and without spaces and line breaks: remove it, or use save()"
    )


def _malformed(path: str | Path, row: int, what: str) -> ValueError:
    return ValueError(
        f"{path}, row {row + 1}: {what}: check that the file is complete and that binary= is correct, "
        f"or export it again"
    )


def _header(path: str | Path, file: BinaryIO, binary: bool) -> tuple[int, int]:
    """Read (V, dim) from the first line, and check them against the file's size."""
    line = file.readline(_MAX_HEADER_BYTES)
    fields = line.split()
    if not line.endswith(b"\n") or len(fields) != 2 or not all(field.isdigit() for field in fields):
        raise ValueError(
            f"{path}: the first line is {line[:40]!r}, not '<words> <dimensions>' as in word2vec's format"
        )
    words, dim = int(fields[0]), int(fields[1])
    room = os.fstat(file.fileno()).st_size - len(line)
    shortest_row = 2 + 4 * dim if binary else 1 + 2 * dim  # a letter, a space, dim numbers
    if dim < 1 or words * shortest_row > room:
        raise ValueError(
            f"{path}: the first line announces {words} words of {dim} numbers, but only {room} bytes follow: "
            f"the file is truncated, or not in {'binary' if binary else 'text'} format"
        )
    return words, dim


def _text_rows(path: str | Path, file: BinaryIO, words: int, dim: int) -> Iterator[_Row]:
    for row in range(words):
        name, *numbers = file.readline().rstrip(b" \r\n").split(b" ")
        if len(numbers) != dim:
            raise _malformed(path, row, f"{len(numbers)} numbers, but the first line announces {dim}")
        try:
            vector = [float(number) for number in numbers]
        except ValueError as error:
            raise _malformed(path, row, str(error)) from None
        yield name, vector
    if file.read(_MAX_HEADER_BYTES).strip():
        raise _malformed(path, words, f"the file continues after the first line's {words} words")


def _binary_rows(path: str | Path, file: BinaryIO, words: int, dim: int) -> Iterator[_Row]:
    position = file.tell()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for row in range(words):
            space = data.find(b" ", position)
            end = space + 1 + 4 * dim
            if space < 0 or end > len(data):
                raise _malformed(path, row, f"the file ends before the first line's {words} words")
            yield data[position:space].lstrip(b"\n"), np.frombuffer(data[space + 1 : end], dtype="<f4")
            position = end
        if data[position : position + _MAX_HEADER_BYTES].strip(b"\n"):
            raise _malformed(path, words, f"the file continues after the first line's {words} words")
