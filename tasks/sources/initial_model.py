"""Locates the pretrained decoder whose training a run continues, and its tokenizer.

The model is specified like a backbone: a folder, owner/name[@revision] on the Hugging Face Hub, or a package.
"""

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.tokenizer.pretrained import NAME, TOKENIZER_JSON, read_pretrained_tokenizer
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.transformer.config import TransformerConfig
from lexloom.models.transformer.pretrained import check_tokenizer, read_pretrained_config
from lexloom.tasks.sources.backbone import locate_model
from lexloom.tasks.sources.fingerprints import SourceFile, verify_files
from lexloom.tasks.sources.token_encodings import LocatedEncoding
from lexloom.tasks.store.artifacts import RunOnly


class InitialModel(BaseModel):
    """A located decoder, which is part of the training config; only its content is part of the key."""

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, RunOnly()]
    digest: str = Field(description="digest of its weights, configuration and tokenizer")
    folder: Annotated[Path, RunOnly()]
    files: Annotated[list[SourceFile], RunOnly()] = Field(repr=False)

    def verify(self) -> None:
        """Raise ValueError if a file has changed since it was located."""
        verify_files(self.files)

    def network(self) -> TransformerConfig:
        """Read its architecture; see `read_pretrained_config`."""
        return read_pretrained_config(self.folder)

    def encoding(self) -> LocatedEncoding:
        """Return its tokenizer, an input of the stage `subwords`."""
        path = self.folder / TOKENIZER_JSON
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        end_of_text = read_pretrained_tokenizer(self.folder).end_of_text
        return LocatedEncoding(name=NAME, digest=digest, end_of_text=end_of_text, path=path)


def locate_initial_model(name: str) -> InitialModel:
    """Locate a pretrained decoder, and check that Lexloom can train it.

    Raises:
        FileNotFoundError: the folder, model, package or a file does not exist.
        ValueError: a part is missing or not supported, or the tokenizer does not fit the weights.
        NetworkError: the Hub can't be reached, after several attempts.
    """
    found = locate_model(name, "initial model", pickled=False)
    network, encoding = read_pretrained_config(found.folder), read_pretrained_tokenizer(found.folder)
    check_tokenizer(Tokenizer(encoding), network, found.folder)
    return InitialModel(name=found.name, digest=found.digest, folder=found.folder, files=found.files)
