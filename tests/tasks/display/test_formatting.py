"""Tests of number formatting."""

import pytest

from lexloom.tasks.display.formatting import counted


@pytest.mark.parametrize(
    ("units", "one"),
    [
        ("documents", "1 document"),
        ("word vectors", "1 word vector"),
        ("held-out windows", "1 held-out window"),
        ("reviews in 3 epochs", "1 review in 3 epochs"),
        ("batches", "1 batch"),
        ("entries", "1 entry"),
        ("words without context", "1 word without context"),
        ("labels like 4.0 read as 4", "1 label like 4.0 read as 4"),
        ("pipes, sockets or devices left out", "1 pipe, socket or device left out"),
        ("hidden files or folders left out", "1 hidden file or folder left out"),
        ("without a label", "1 without a label"),
        ("with bytes replaced that were NUL bytes", "1 with bytes replaced that were NUL bytes"),
        ("truncated to 16 tokens", "1 truncated to 16 tokens"),
        ("words below min_count", "1 word below min_count"),
        ("empty", "1 empty"),
        ("NaN cells treated as missing", "1 NaN cell treated as missing"),
    ],
)
def test_singular_and_plural(units: str, one: str) -> None:
    assert counted(1, units) == one
    assert counted(0, units) == f"0 {units}"
    assert counted(1234, units) == f"1,234 {units}"
