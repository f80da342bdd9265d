"""The labels of a source are whole numbers, or text: decided by all of them, never by the first."""

import pyarrow as pa
import pyarrow.compute as pc

from tasks.raw import Raw

# as a number is written, so that its text is the same again: "01" is no number but a name
WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
FRACTION = r"[.eE]"


class Labels:
    """Gives labels of one type, whole numbers as long as all so far are some; `are_text` from then on."""

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._typed: pa.DataType | None = None  # of labels whose source says of what type they are
        self._fraction = ""
        self._has_words = False
        self.are_text = False

    def read(self, raw: Raw) -> pa.Array:
        """A batch's labels; ValueError, with the place, where the source mixes whole numbers and text."""
        labels = raw.labels
        assert labels is not None
        if labels.null_count == len(labels):
            return labels.cast(pa.string() if self.are_text else pa.int64())
        numbers = labels if labels.type == pa.int64() else None if raw.typed else whole_numbers(labels)
        kind, other = (pa.string(), pa.int64()) if numbers is None else (pa.int64(), pa.string())
        if raw.typed:
            self._typed = self._typed or kind
        mixed = self._typed == other if raw.typed else (self._typed, kind) == (pa.int64(), pa.string())
        if mixed or (raw.typed and kind == pa.int64() and self.are_text):
            row = pc.index(labels.is_valid(), True).as_py()
            raise ValueError(
                f"column {self._column!r} is {kind} from {raw.where(row)} on, and was {other} before: make it"
                " one type"
            )
        if numbers is None:
            self.are_text = True
            self._look_for_fractions(labels, raw)
        return labels.cast(pa.string()) if self.are_text else numbers

    def _look_for_fractions(self, labels: pa.Array, raw: Raw) -> None:
        numeric = pc.match_substring_regex(labels, NUMBER)
        self._has_words |= raw.typed or not pc.all(numeric).as_py()
        row = pc.index(pc.match_substring_regex(labels, FRACTION), True).as_py()
        if row >= 0 and not self._fraction:
            self._fraction = f"{raw.where(row)}: {self._column!r} is {labels[row]}"

    def check(self) -> None:
        """At the end of the source: ValueError where all labels are numbers, and not all whole."""
        if self._fraction and not self._has_words:
            raise ValueError(f"{self._fraction}, which is no label: a label is a whole number or text")


def whole_numbers(labels: pa.Array) -> pa.Array | None:
    """Text as int64; None where any of it is something else, or too large."""
    if not pc.all(pc.match_substring_regex(labels, WHOLE)).as_py():
        return None
    try:
        return labels.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
