"""Word vectors, however they were made: looked up by nearest neighbours and analogies, written and read.

Lexloom's own form is safetensors and JSON; word2vec's text and binary formats are what the ecosystem reads.

Shapes: V words, dim floats a vector, Q queries.
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
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.nn.functional import normalize, pad

from lexloom.models.normalization import Normalization, normalize_text, read_normalization

_QUERY_BLOCK = 512
_SCORES = 1 << 20  # at a time, 4 MB: about what a cache holds
_GROUP = 64  # neighbouring words
_SPAN = 4096 * _GROUP  # words whose groups' maxima are at hand
_GATHERED = 1 << 24  # floats of chosen words' vectors at a time, 64 MB
_LONGEST_HEADER = 64  # bytes: two numbers
_SPELLINGS = 50_000  # words looked through for a near spelling: it takes about 10 microseconds a word

Neighbours = list[tuple[str, float]]
_Row = tuple[bytes, np.ndarray | list[float]]  # of a file: the word, its vector


class UnknownWordError(KeyError):
    """A word that is not in the vocabulary; str() is a sentence for the user."""

    def __str__(self) -> str:
        return str(self.args[0])


class WordVectors:
    """One vector a word.

    Args:
        words: V different words; a word's place is its id.
        vectors: (V, dim) float32, finite.
        normalization: what the training text was normalised by. A word that is none of the model's is looked
            up as the rules make it.

    Raises:
        ValueError: the two do not fit each other, a word stands twice, or a number is not finite.
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
                f"{len(self.words)} words do not fit vectors of shape {tuple(self.vectors.shape)}."
            )
        if len(self._ids) != len(self.words):
            twice = next(word for i, word in enumerate(self.words) if self._ids[word] != i)
            raise ValueError(f"The word '{twice}' stands twice in the vocabulary: every word needs one row.")
        norms = torch.linalg.vector_norm(self.vectors, dim=1, dtype=torch.float64)  # (V,), no overflow
        if not norms.isfinite().all():
            row = int((~norms.isfinite()).nonzero()[0])
            raise ValueError(f"The vector of '{self.words[row]}' (row {row}) is not finite.")
        self._inverse_norms = (1.0 / norms.clamp_min(torch.finfo(torch.float32).tiny)).float()

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.spelling(word) in self._ids

    def spelling(self, word: str) -> str:
        """The word as it is in the vocabulary, or as the normalisation makes it where it is not there."""
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
                f"Nothing is left of '{word}' by this model's normalisation: ask for a word of letters."
            )
        parts = spelling.split()
        if len(parts) > 1:
            raise UnknownWordError(
                f"'{word}' is {len(parts)} words to this model ({', '.join(parts)}): ask for one."
            )
        alike = [spelling.lower()] if spelling.lower() in self._ids else []
        near = alike or get_close_matches(spelling, self.words[:_SPELLINGS])
        hint = f" Near it: {', '.join(near)}." if near else ""
        raise UnknownWordError(f"'{spelling}' is none of the {len(self):,} words of this model.{hint}")

    def _unit(self, ids: list[int]) -> Tensor:
        return self.vectors[ids] * self._inverse_norms[ids, None]

    def neighbours(self, words: Sequence[str], k: int = 10) -> list[Neighbours]:
        """For each word the k others of the highest cosine, exactly; best first.

        Raises:
            UnknownWordError: a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in words]
        return self._nearest(self._unit(ids), k, torch.tensor(ids, dtype=torch.long).view(-1, 1))

    def neighbours_of(self, vectors: Tensor | np.ndarray, k: int = 10) -> list[Neighbours]:
        """For each of the vectors, (Q, dim), the k words of the highest cosine, exactly; best first."""
        queries = torch.as_tensor(vectors, dtype=torch.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"The queries are {tuple(queries.shape)}: they must be (Q, {self.vectors.shape[1]})."
            )
        return self._nearest(normalize(queries), k, torch.empty(len(queries), 0, dtype=torch.long))

    def analogy(self, a: str, b: str, c: str, k: int = 5) -> Neighbours:
        """a is to b as c is to what? The k words of the highest cosine to b - a + c, best first (3CosAdd).

        The vectors of a, b and c are brought to length 1 first; the three words are left out.

        Raises:
            UnknownWordError: a word is not in the vocabulary.
        """
        ids = [self._id(word) for word in (a, b, c)]
        unit_a, unit_b, unit_c = self._unit(ids)
        return self._nearest(normalize((unit_b - unit_a + unit_c)[None]), k, torch.tensor([ids]))[0]

    def _nearest(self, queries: Tensor, k: int, left_out: Tensor) -> list[Neighbours]:
        """queries: (Q, dim) of length 1; left_out: (Q, E) ids. Memory is bounded by the two block sizes."""
        if k < 1:
            raise ValueError(f"k is {k}: it must be at least 1.")
        found: list[Neighbours] = []
        for first in range(0, len(queries), _QUERY_BLOCK):
            block = slice(first, first + _QUERY_BLOCK)
            scores, ids = self._best(queries[block], k, left_out[block])
            for row in zip(ids.tolist(), scores.tolist(), strict=True):
                found.append([(self.words[i], s) for i, s in zip(*row, strict=True) if s > -torch.inf])
        return found

    def _best(self, queries: Tensor, k: int, left_out: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and ids of each query's k best words, (Q, k) each; a score of -inf marks one left out.

        The k best are within the k groups whose own best are best. So of nearly all scores only the groups'
        maxima are kept, while the scores are still in the processor's cache.
        """
        best, chosen = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self), _SPAN):
            maxima = self._maxima(queries, left_out, start, min(start + _SPAN, len(self)))
            groups = (start // _GROUP + torch.arange(maxima.shape[1])).expand(len(queries), -1)
            best, chosen = torch.cat([best, maxima], 1), torch.cat([chosen, groups], 1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            chosen = chosen.gather(1, order)
        floats = max(1, chosen.shape[1] * _GROUP * self.vectors.shape[1])  # that a query's groups have
        at_once = max(1, _GATHERED // floats)
        parts = zip(*(part.split(at_once) for part in (queries, left_out, chosen)), strict=True)
        found = [self._best_within(some, out, groups, k) for some, out, groups in parts]
        scores, ids = zip(*found, strict=True)
        return torch.cat(scores), torch.cat(ids)

    def _maxima(self, queries: Tensor, left_out: Tensor, start: int, end: int) -> Tensor:
        """The best score in each group of the words start .. end - 1, (Q, groups)."""
        size = max(_GROUP, min(_SPAN, _SCORES // len(queries) // _GROUP * _GROUP))
        maxima = torch.empty(len(queries), -(-(end - start) // _GROUP))
        for first in range(start, end, size):
            block = slice(first, min(first + size, end))
            # (block, Q): so the maxima are taken over rows, whole registers at a time
            scores = (self.vectors[block] @ queries.T).mul_(self._inverse_norms[block, None])
            here = (left_out >= block.start) & (left_out < block.stop)  # (Q, E)
            scores[left_out[here] - first, here.nonzero()[:, 0]] = -torch.inf
            if missing := -len(scores) % _GROUP:
                scores = pad(scores, (0, 0, 0, missing), value=-torch.inf)
            place = (first - start) // _GROUP
            maxima[:, place : place + len(scores) // _GROUP] = scores.unflatten(0, (-1, _GROUP)).amax(1).T
        return maxima

    def _best_within(
        self, queries: Tensor, left_out: Tensor, groups: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """As `_best`, of the words in some groups, (Q, G)."""
        ids = (groups[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)  # (Q, G * _GROUP)
        beyond, ids = ids >= len(self), ids.clamp(max=len(self) - 1)  # of the last group, there may be less
        scores = (self.vectors[ids] @ queries[:, :, None]).squeeze(2) * self._inverse_norms[ids]
        scores[beyond | (ids[:, :, None] == left_out[:, None, :]).any(2)] = -torch.inf
        best, order = scores.topk(min(k, scores.shape[1]), dim=1)
        return best, ids.gather(1, order)

    # Lexloom's own form: safetensors and JSON.

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` (one tensor, `vectors`) and `vocabulary.json` (word -> id) there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # not save_file: its files can be read by their owner alone, and a store is shared
        (folder / "model.safetensors").write_bytes(safetensors_bytes({"vectors": self.vectors}))
        (folder / "vocabulary.json").write_text(json.dumps(self._ids, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "WordVectors":
        """Read what `save` wrote, and the normalisation that the folder's `config.json` records.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the two do not fit each other.
        """
        model, vocabulary = Path(folder) / "model.safetensors", Path(folder) / "vocabulary.json"
        for path in (model, vocabulary):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {folder} holds no word vectors.")
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{vocabulary} is not JSON ({error}): save it again.") from None
        if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
            raise ValueError(f"{vocabulary} does not map words to ids: save it again.")
        words = sorted(ids, key=ids.__getitem__)
        if [ids[word] for word in words] != list(range(len(words))):
            raise ValueError(f"{vocabulary}: the ids are not 0 to {len(words) - 1} once each: save it again.")
        try:
            vectors = load_file(model)["vectors"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{model} holds no tensor 'vectors' ({error}): save it again.") from None
        rules = read_normalization(folder)
        try:
            return cls(words, vectors, rules)
        except ValueError as error:
            raise ValueError(f"{model}: {error}") from None

    # The formats of word2vec.c, which gensim and others read.

    def save_word2vec(self, path: str | Path, *, binary: bool) -> None:
        """Write word2vec's text or binary format. Text has nine digits a number: every float32 comes back.

        Raises:
            ValueError: a word is empty, has a space or a line break, or is no valid Unicode.
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
            ValueError: the file is not in this format, is cut off, or holds a number that is not finite; the
                sentence names the row, the first word's being row 1.
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
                with np.errstate(over="ignore"):  # a number beyond float32 is infinite, and found below
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
    """Write each word and its count, a line a word, as word2vec.c's `-save-vocab` does: gensim reads it as
    `fvocab`, beside vectors in word2vec's text or binary format.

    Raises:
        ValueError: a word has white space (`has_white_space`), by which gensim splits a line.
    """
    for row, word in enumerate(words):
        if has_white_space(word):
            raise ValueError(
                f"The word {word!r} (row {row + 1}) has white space, and a file of counts has none within a"
                " word: leave it out."
            )
    with open(path, "wb") as file:
        for word, count in zip(words, counts, strict=True):
            file.write(f"{word} {count}\n".encode())


def has_white_space(word: str) -> bool:
    """Whether a word has white space of any script, such as U+00A0."""
    return word.split() != [word]


def _writable(row: int, word: str) -> bytes:
    with suppress(UnicodeEncodeError):
        if word and " " not in word and "\n" not in word:
            return word.encode()
    raise ValueError(
        f"The word {word!r} (row {row + 1}) cannot be written in word2vec's format, where a word is UTF-8, "
        f"is not empty and has no space or line break: leave it out, or use save()."
    )


def _malformed(path: str | Path, row: int, what: str) -> ValueError:
    return ValueError(
        f"{path}, row {row + 1}: {what}. Check that the file is whole and that binary= is right, "
        f"or export it again."
    )


def _header(path: str | Path, file: BinaryIO, binary: bool) -> tuple[int, int]:
    """(V, dim) of the first line, no more than the file has room for; leaves the file after that line."""
    line = file.readline(_LONGEST_HEADER)
    fields = line.split()
    if not line.endswith(b"\n") or len(fields) != 2 or not all(field.isdigit() for field in fields):
        raise ValueError(
            f"{path}: the first line is {line[:40]!r}, not '<words> <dimensions>': is this word2vec's format?"
        )
    words, dim = int(fields[0]), int(fields[1])
    room = os.fstat(file.fileno()).st_size - len(line)
    shortest_row = 2 + 4 * dim if binary else 1 + 2 * dim  # a letter, a space, dim numbers
    if dim < 1 or words * shortest_row > room:
        raise ValueError(
            f"{path}: the first line promises {words} words of {dim} numbers, but only {room} bytes follow: "
            f"the file is cut off, or is not {'binary' if binary else 'text'}."
        )
    return words, dim


def _text_rows(path: str | Path, file: BinaryIO, words: int, dim: int) -> Iterator[_Row]:
    for row in range(words):
        name, *numbers = file.readline().rstrip(b" \r\n").split(b" ")
        if len(numbers) != dim:
            raise _malformed(path, row, f"{len(numbers)} numbers where the first line promises {dim}")
        try:
            vector = [float(number) for number in numbers]
        except ValueError as error:
            raise _malformed(path, row, str(error)) from None
        yield name, vector
    if file.read(_LONGEST_HEADER).strip():
        raise _malformed(path, words, f"the file goes on after the first line's {words} words")


def _binary_rows(path: str | Path, file: BinaryIO, words: int, dim: int) -> Iterator[_Row]:
    place = file.tell()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for row in range(words):
            space = data.find(b" ", place)
            end = space + 1 + 4 * dim
            if space < 0 or end > len(data):
                raise _malformed(path, row, f"the file ends before the first line's {words} words do")
            yield data[place:space].lstrip(b"\n"), np.frombuffer(data[space + 1 : end], dtype="<f4")
            place = end
        if data[place : place + _LONGEST_HEADER].strip(b"\n"):
            raise _malformed(path, words, f"the file goes on after the first line's {words} words")
