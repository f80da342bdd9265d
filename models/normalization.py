"""Normalization: the rules that are applied to text before a model reads it, in training and inference.

A model's folder records its rules (`read_normalization`), so that inputs are normalized like its training
text.

Words follow Unicode word boundaries (UAX 29, "Unicode Text Segmentation"), with two changes: a hyphen between
two letters or digits joins them (co-op), and a colon does not. All rules are Arrow kernels and RE2
expressions over whole arrays; only character references are decoded row by row, in the rows that have any.
ASCII rows, nine out of ten in English text, skip the rules for other characters.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import unescape
from html.entities import html5
from pathlib import Path
from typing import Annotated, Any, Literal

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lexloom.models.registry import DESCRIPTIONS

FIELD = "normalization"  # of a model's description file

# for use in brackets: white space of any script (as in str.isspace), except the plain space
SPACE_BEYOND_ASCII = r"\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
WIDE_SPACE = rf"\t-\r\x{{1c}}-\x{{1f}}{SPACE_BEYOND_ASCII}"
TAB, RETURN, FILE_SEPARATOR, SPACE = np.uint8(9), np.uint8(13), np.uint8(0x1C), np.uint8(32)
CONTINUES, CONTINUATION = np.uint8(0xC0), np.uint8(0x80)  # continuation bytes in UTF-8
MARKS = r"\p{M}\x{200d}"  # includes the zero-width joiner, with which some words end (Malayalam)
# UAX 29's MidNumLet, ExtendNumLet and most of MidLetter; the hyphen; invisible joiners (Mongolian, Persian)
JOINERS = r"'._\-\x{b7}\x{2027}\x{5f3}\x{5f4}\x{180e}\x{200c}"
SAME_JOINERS = {"[\u2019\uff07]": "'", "[\u2010\u2011]": "-"}  # typographic -> plain
# UAX 29's Format: soft hyphen, word joiner, byte order mark, marks of direction. Not U+200B, which is a space
INVISIBLE = r"[\x{ad}\x{61c}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{206f}\x{feff}]"
# a superset of what Unicode NFC may change: marks, parts of Hangul, characters with another form
COMPOSABLE = (
    r"\p{M}\x{340}-\x{387}\x{958}-\x{9df}\x{a33}-\x{a5e}\x{b5c}\x{b5d}\x{f43}-\x{fb9}\x{1100}-\x{11ff}"
    r"\x{1f71}-\x{2001}\x{2126}-\x{212b}\x{2329}\x{232a}\x{2adc}\x{f900}-\x{faff}\x{fb1d}-\x{fb4e}"
    r"\x{1d15e}-\x{1d1c0}\x{2f800}-\x{2fa1d}"
)
# scripts without spaces between words
IDEOGRAPHS_AND_KANA = r"\p{Han}\p{Hiragana}\p{Katakana}\x{30fc}\x{ff70}"
SOUTH_EAST_ASIAN = (
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
    r"\p{Javanese}\p{Balinese}"
)
UNSEGMENTED = IDEOGRAPHS_AND_KANA + SOUTH_EAST_ASIAN

# inline elements: their tags are removed; all other tags are replaced with a space
INLINE_ELEMENTS = (
    "a abbr acronym b bdi bdo big blink cite code data del dfn em font i ins kbd label mark nobr q rb"
    " rp rt rtc ruby s samp small span strike strong sub sup time tt u var wbr"
)
OTHER_ELEMENTS = (
    "address applet area article aside audio base basefont bgsound blockquote body br button canvas"
    " caption center col colgroup command datalist dd details dialog dir div dl dt embed fieldset"
    " figcaption figure footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html iframe"
    " img input isindex keygen legend li link listing main map marquee math menu menuitem meta meter nav"
    " noembed noframes noscript object ol optgroup option output p param picture plaintext portal pre"
    " progress script search section select slot source style summary svg table tbody td template"
    " textarea tfoot th thead title tr track ul video xmp"
)
# attributes that need no value; others do, so `<` followed by words is not a tag
VALUELESS = (
    "allowfullscreen alt async autofocus autoplay checked compact contenteditable controls crossorigin"
    " declare default defer disabled download formnovalidate hidden inert ismap itemscope loop multiple"
    " muted nomodule noresize noshade novalidate nowrap open playsinline readonly required reversed"
    " selected data-[a-z-]+"
)
VALUE = r"""\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s"'<>`]+)"""
ATTRIBUTES = rf"(?:[\s/]+(?:[a-z_:@][\w:.@-]*{VALUE}|(?:{VALUELESS.replace(' ', '|')})))*"


def tag_pattern(elements: str) -> str:
    """A pattern for start and end tags of the elements; it begins with a literal `<` for speed."""
    names = f"(?:{elements.replace(' ', '|')})"
    return rf"<(?i:/{names}\s*|{names}{ATTRIBUTES}[\s/]*)>"


COMMENT = r"<!--(?s:.*?)-->"
DECLARATION = r"<(?i:!doctype(?:\s[^<>]*)?|\?xml(?:-stylesheet)?\s[^<>]*\?)>"
INLINE_MARKUP = f"{tag_pattern(INLINE_ELEMENTS)}|{COMMENT}"
OTHER_MARKUP = f"{tag_pattern(OTHER_ELEMENTS)}|{DECLARATION}"
REFERENCE = r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"

MARKUP, WITH_MARKUP = "characters of markup stripped", "documents with markup"
STRIPPED = "characters of punctuation and numbers stripped"
WITH_STRIPPED = "documents with punctuation or numbers"
COMPOSED = "documents changed by Unicode NFC"

Losses = Counter[str]
Work = Callable[[pa.StringArray], pa.StringArray]


StripMarkup = Annotated[
    bool,
    Field(description="Strip HTML tags and comments, and decode character references such as &amp;."),
]
Lower = Annotated[bool, Field(description="Convert to lower case.")]
StripPunctuation = Annotated[
    bool,
    Field(
        description="Strip everything but words: letters, their marks, digits, and a single apostrophe,"
        " hyphen, full stop, middle dot or underscore between two of these (don't, co-op)."
    ),
]
StripDigits = Annotated[
    bool, Field(description="Strip numbers in any script; digits in words such as mp3 are kept.")
]
CollapseSpaces = Annotated[
    bool, Field(description="Replace each run of white space with one space, and trim the ends.")
]


class Normalization(BaseModel):
    """The rules that are applied to every document, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strip_markup: StripMarkup = True
    unicode_nfc: bool = Field(True, description="Compose characters (Unicode NFC).")
    lower: Lower = True
    strip_punctuation: StripPunctuation = True
    strip_digits: StripDigits = True
    collapse_spaces: CollapseSpaces = True
    segment: Literal["spaces", "characters"] = Field(
        "spaces",
        description="Word boundaries: 'spaces' splits at spaces only; 'characters' also makes each character"
        " a word in scripts without spaces between words (Chinese, Japanese, Thai, ...).",
    )


# rules recorded in a model's folder


def read_normalization(folder: Path | str) -> Normalization | None:
    """Read the rules that a model's folder records; None if it has none, like folders of other tools.

    Raises:
        ValueError: the record is damaged.
    """
    for path in (Path(folder) / name for name in DESCRIPTIONS):
        if path.is_file():
            try:
                found = json.loads(path.read_bytes()).get(FIELD)
                return None if found is None else Normalization.model_validate(found)
            except (ValueError, AttributeError, ValidationError) as error:
                what = str(error).splitlines()[0]
                raise ValueError(f"{path} is damaged ({what}): train or export the model again") from None
    return None


def active_rules(rules: Mapping[str, Any] | None) -> list[str]:
    """The names of the recorded rules that change text, such as `lower`."""
    return [name for name, value in (rules or {}).items() if value is True or value == "characters"]


def card_note(rules: Sequence[str]) -> str:
    """Return a model card's note on the rules that other tools do not apply; empty without rules."""
    if not rules:
        return ""
    names = ", ".join(f"`{rule}`" for rule in rules)
    return (
        f"\nThe training text was normalized ({names}). Lexloom normalizes its input in the same way; other"
        " tools do not.\n"
    )


def normalize_text(text: str, rules: Normalization | None) -> str:
    """Normalize one text with a model's rules; unchanged if there are none."""
    return normalize_texts([text], rules)[0]


def normalize_texts(texts: Sequence[str], rules: Normalization | None) -> list[str]:
    """Normalize texts with a model's rules; unchanged if there are none."""
    if rules is None:
        return list(texts)
    try:
        rows = pa.array(texts, pa.string())
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise ValueError(f"a text has a lone surrogate ({half}): check how it was decoded") from None
    return normalize(rows, rules).to_pylist()


def normalize_prompt(text: str, rules: Normalization | None) -> str:
    """Normalize the beginning of a text with a model's rules; a space at its end is kept."""
    found = normalize_text(text, rules)
    return f"{found} " if found and text[-1:].isspace() and not found[-1].isspace() else found


# the rules


def normalize(text: pa.StringArray, rules: Normalization, losses: Losses | None = None) -> pa.StringArray:
    """Normalize text row by row; what was removed or changed is added to `losses`."""
    losses = Counter() if losses is None else losses
    if rules.strip_markup:
        before, text = text, remove_markup(text)
        count_lost(losses, (MARKUP, WITH_MARKUP), pc.utf8_length(before), pc.utf8_length(text))
    return apply_to_rows(
        text,
        pc.invert(pc.string_is_ascii(text)),
        lambda rows: apply_to_rows(
            rows,
            pc.match_substring_regex(rows, BEYOND_LATIN),
            lambda rows: normalize_characters(rows, rules, losses, UNICODE),
            lambda rows: normalize_characters(rows, rules, losses, LATIN),
        ),
        lambda rows: normalize_characters(rows, rules, losses, ASCII),
    )


def normalize_characters(
    text: pa.StringArray, rules: Normalization, losses: Losses, words: "Words"
) -> pa.StringArray:
    """Apply all rules except for markup to rows whose characters `words` covers."""
    if rules.unicode_nfc and words is not ASCII:
        before, text = text, compose(text)
        losses[COMPOSED] += pc.sum(pc.not_equal(before, text)).as_py() or 0
    if rules.lower:
        text = pc.ascii_lower(text) if words is ASCII else pc.utf8_lower(text)
    if rules.strip_punctuation or rules.strip_digits:
        before = text
        if rules.strip_punctuation and words is not ASCII:
            text = unify_joiners(text)
        text = words.strip(text, rules)
        lengths = (visible_characters(each, ascii_only=words is ASCII) for each in (before, text))
        count_lost(losses, (STRIPPED, WITH_STRIPPED), *lengths)
    if rules.segment == "characters" and words is UNICODE:
        text = pc.replace_substring_regex(text, f"([{UNSEGMENTED}][{MARKS}]*)", r" \1 ")
    if rules.collapse_spaces:
        if not rules.strip_punctuation or rules.segment == "characters":
            text = pc.replace_substring_regex(text, words.spaces, " ")
        text = pc.utf8_trim_whitespace(text)
    return text


def compose(text: pa.StringArray) -> pa.StringArray:
    """Apply Unicode NFC; it is slow, so only to rows that may not be in NFC already."""
    rows = pc.match_substring_regex(text, f"[{COMPOSABLE}]")
    return apply_to_rows(text, rows, lambda some: pc.utf8_normalize(some, "NFC"))


def apply_to_rows(
    text: pa.StringArray,
    rows: pa.BooleanArray,
    work: Work,
    work_elsewhere: Work = lambda text: text,
) -> pa.StringArray:
    """Apply `work` to the selected rows and `work_elsewhere` to the others."""
    some = rows.true_count
    if some == 0:
        return work_elsewhere(text)
    if some == len(text):
        return work(text)
    others = pc.invert(rows)
    done = pa.concat_arrays([work(text.filter(rows)), work_elsewhere(text.filter(others))])
    places = np.empty(len(text), np.int64)
    chosen = rows.to_numpy(zero_copy_only=False)
    places[chosen], places[~chosen] = np.arange(some), np.arange(some, len(text))
    return done.take(pa.array(places))


# markup


def remove_markup(text: pa.StringArray) -> pa.StringArray:
    text = pc.replace_substring_regex(text, INLINE_MARKUP, "")
    text = pc.replace_substring_regex(text, OTHER_MARKUP, " ")
    return apply_to_rows(text, pc.match_substring_regex(text, REFERENCE), decode_references)


def decode_references(text: pa.StringArray) -> pa.StringArray:
    reference = re.compile(REFERENCE)
    return pa.array([reference.sub(decode_reference, row) for row in text.to_pylist()], pa.string())


def decode_reference(found: re.Match[str]) -> str:
    """Decode a character reference; it is left unchanged if HTML does not define it."""
    known = found[0][1] == "#" or found[0][1:] in html5
    return unescape(found[0]) if known else found[0]


# words and numbers


class Words:
    """RE2 expressions for text between words, built from character classes for use in brackets.

    Compiling one for all of Unicode takes 10 ms, and Arrow does so in each call. So there are separate ones
    for the characters of most Latin text, and each expression repeats the classes as little as possible.
    """

    def __init__(self, letters: str, digits: str, marks: str, joiners: str, spaces: str) -> None:
        marked = f"[{marks}]*" if marks else ""
        word = letters + digits + marks
        marked_joiner = f"|[{joiners}][{marks}]+" if marks else ""
        symbol = f"(?:[^{word}{joiners} {spaces}]{marked}{marked_joiner})"  # with its combining marks
        self.spaces = rf"[{spaces}][ {spaces}]*| [ {spaces}]+"
        # Everything that becomes one space. A run of characters between words is one match. A single joiner
        # or space matches only at the ends of the text, so joiners inside words are kept, and a space is not
        # replaced with itself (nine out of ten matches in English).
        between = f"(?:{symbol}|[{joiners} {spaces}])"
        self.between = rf"(?:\A|[{spaces}]|{symbol}|[ {joiners}]{between}){between}*|[{joiners}]\z"
        # for text of only words and single spaces
        self.numbers_between_spaces = rf"(?:\A| )(?:[{digits}][{digits}{marks}{joiners}]*(?: |\z))+"
        # for text whose white space is kept
        self.punctuation = (
            rf"{symbol}(?:{symbol}|[{joiners}])*|[{joiners}](?:{symbol}|[{joiners}])+"
            rf"|\A[{joiners}]|[{joiners}]\z"
        )
        self.joiners_at_spaces = (f"([ {spaces}])[{joiners}]", f"[{joiners}]([ {spaces}])")
        self.number = (
            rf"(\A[{joiners}]*|(?:[ {spaces}]|{symbol})[{joiners}]*|[{joiners}]{{2,}})"
            rf"[{digits}]{marked}(?:[{joiners}]?[{digits}]{marked})*"
            rf"([{joiners}]*\z|[{joiners}]*(?:[ {spaces}]|{symbol})|[{joiners}]{{2,}})"
        )

    def strip(self, text: pa.StringArray, rules: Normalization) -> pa.StringArray:
        """Strip punctuation, numbers or both; white space is collapsed if the rules allow it."""
        if rules.strip_punctuation and rules.collapse_spaces:
            text = pc.replace_substring_regex(text, self.between, " ")
            numbers = self.numbers_between_spaces
            return pc.replace_substring_regex(text, numbers, " ") if rules.strip_digits else text
        if rules.strip_punctuation:
            text = pc.replace_substring_regex(text, self.punctuation, " ")
            before, after = self.joiners_at_spaces
            text = pc.replace_substring_regex(text, before, r"\1 ")
            text = pc.replace_substring_regex(text, after, r" \1")
        if rules.strip_digits:
            for _ in range(2):  # of "1 2 3" one pass finds every other number
                text = pc.replace_substring_regex(text, self.number, r"\1 \2")
        return text


UNICODE = Words(r"\p{L}", r"\p{N}", MARKS, JOINERS, WIDE_SPACE)
# letters up to U+017F, whose lower case is in the same range; without marks
LATIN = Words(
    r"A-Za-z\x{aa}\x{b5}\x{ba}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{17f}",
    r"0-9\x{b2}\x{b3}\x{b9}\x{bc}-\x{be}",
    "",
    JOINERS,
    WIDE_SPACE,
)
BEYOND_LATIN = r"[^\x00-\x{17f}\x{2000}-\x{200c}\x{200e}-\x{206f}\x{20a0}-\x{20cf}]"
ASCII = Words("A-Za-z", "0-9", "", r"'._\-", r"\t-\r\x{1c}-\x{1f}")


def unify_joiners(text: pa.StringArray) -> pa.StringArray:
    """Remove invisible characters, and replace typographic apostrophes and hyphens with plain ones."""
    for typographic, plain in SAME_JOINERS.items():
        text = pc.replace_substring_regex(text, typographic, plain)
    return pc.replace_substring_regex(text, INVISIBLE, "")


# losses


def count_lost(losses: Losses, reasons: tuple[str, str], before: pa.Array, after: pa.Array) -> None:
    """Add the numbers of removed characters and affected rows. `before`, `after`: characters per row."""
    fewer = pc.subtract(before, after)
    for reason, counts in zip(reasons, (fewer, pc.not_equal(fewer, 0)), strict=True):
        losses[reason] += pc.sum(counts).as_py() or 0


def visible_characters(text: pa.StringArray, *, ascii_only: bool) -> pa.Int64Array:
    """Count the characters of each row that are not white space."""
    _, offsets, data = text.buffers()
    starts = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    counts = pa.array(count_visible(starts, np.frombuffer(data or b"", np.uint8)))
    if ascii_only:
        return counts
    return pc.subtract(counts, pc.count_substring_regex(text, f"[{SPACE_BEYOND_ASCII}]").cast(pa.int64()))


@numba.njit(nogil=True, cache=True)
def count_visible(starts, data):  # type: ignore[no-untyped-def]
    """Count characters except ASCII white space in each row of UTF-8 `data`; `starts` are row offsets."""
    counts = np.zeros(len(starts) - 1, np.int64)
    for row in range(len(starts) - 1):
        visible = np.int32(0)
        for byte in data[starts[row] : starts[row + 1]]:
            begins = np.int32((byte & CONTINUES) != CONTINUATION)  # a character
            space = np.int32(byte == SPACE) | np.int32((byte >= TAB) & (byte <= RETURN))
            space |= np.int32((byte >= FILE_SEPARATOR) & (byte < SPACE))
            visible += begins & (np.int32(1) - space)
        counts[row] = visible
    return counts
