"""Formats numbers for people."""

import re
from collections.abc import Sequence
from typing import Any

NO_NOUN = r"(?!(?:at|below|beyond|in|not|of|with|without)\b)"
NOUN = r"[\w-]*[^\Ws]s\b"
# an optional adjective, a plural noun, and further nouns after a comma or a conjunction
PLURALS = re.compile(rf"{NO_NOUN}(?:[\w-]+ )?{NOUN}(?:,? (?:or |and )?{NOUN})*")
PLURAL = re.compile(rf"\b{NOUN}")
DOUBLE_ENDINGS = ("ches", "shes", "xes", "sses")


def counted(number: float, units: str) -> str:
    """Format a count: `1,234 documents`, `1 document`; `units` begins with a plural noun, or has none."""
    if number != 1:
        return f"{number:,} {units}"
    head = PLURALS.match(units)
    end = head.end() if head else 0
    return f"1 {PLURAL.sub(lambda word: singular(word[0]), units[:end])}{units[end:]}"


def singular(plural: str) -> str:
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    return plural[:-2] if plural.endswith(DOUBLE_ENDINGS) else plural[:-1]


def short(value: float) -> str:
    """Format a number with three digits: 950, 12.3k, 104M, 2.5B."""
    return three_digits(value, ("", "k", "M", "B"))


def size(count: int) -> str:
    return three_digits(count, (" B", " kB", " MB", " GB"))


def three_digits(value: float, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power]}" if abs(value) < 999.5 else f"{value:,.0f}{units[power]}"


def duration(seconds: float) -> str:
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def compute_progress_share(point: dict[str, Any]) -> float:
    """Return the completed share of training, by the limit that will end it (`Progress.share`)."""
    return point["share"] if "share" in point else point["examples"] / point["total_examples"]


def format_losses(loss: float, validation_loss: float | None) -> list[str]:
    """Format the training loss and, if there was an evaluation, the last validation loss."""
    held_out = [] if validation_loss is None else [f"validation loss {validation_loss:.3f}"]
    return [f"loss {loss:.3f}", *held_out]


def format_progress(point: dict[str, Any], unit: str) -> str:
    """Format a `Progress` as `16.8M of 40.9M pairs · epoch 3 · loss 1.234 · ...`."""
    done, total, seconds = point["examples"], point["total_examples"], point["seconds"]
    share = compute_progress_share(point)
    figures = [
        f"{short(done)} of {short(total)} {unit}",
        f"epoch {point['epoch'] + 1}",
        *format_losses(point["loss"], point.get("validation_loss")),
        f"learning rate {point['learning_rate']:.2g}",
        f"{short(done / seconds)}/s",
    ]
    if share < 1:
        figures.append(f"about {duration((1 - share) * seconds / share)} left")
    return " · ".join(figures)
