"""The interface of encodings, which map text to ids."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class Encoding(ABC):
    """An encoding of text as base ids from 0 to `size` - 1, one of which is `end_of_text`."""

    name: str
    size: int
    end_of_text: int

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Return (tokens,) ids. Raises UnicodeEncodeError for a lone surrogate."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, possibly a part of a character; empty for unused ids."""

    @abstractmethod
    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        """The base ids that must be kept to encode a text as before; `occurs`, (size,), marks its tokens."""

    def restrict(self, base_ids: Ids) -> "Encoding":
        """Return this encoding without the ids that are not kept."""
        return self

    def pattern(self) -> str | None:
        """The regular expression that splits text before merging; None if there is none."""
        return None

    def files(self) -> dict[str, bytes]:
        """The content of the files that are saved in addition to `encoding.json`, by name."""
        return {}
