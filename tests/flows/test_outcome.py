"""The table of stages on a run's page."""

from flows.outcome import row
from tasks.artifacts import Summary
from tasks.stage import StageRecord


def test_a_row_says_what_a_stage_was_made_from_and_why_it_ran() -> None:
    summary = Summary(rows_in=5, unit_in="words", rows=3, unit="tokens", dropped={"unknown": 2})
    parents = ["corpus/0123456789abcdef01234567", "vocabulary/fedcba9876543210fedcba98"]
    record = StageRecord("tokens", "aaaa", parents, False, 1.26, summary, ["pairs.window: 5 -> 8", "more"])
    assert row(record) == {
        "stage": "tokens",
        "cached": "no",
        "seconds": 1.3,
        "rows": "5 words → 3 tokens · 2 unknown",
        "made from": "corpus/01234567, vocabulary/fedcba98",
        "key": "aaaa",
        "why it ran": "pairs.window: 5 -> 8; more",
    }
