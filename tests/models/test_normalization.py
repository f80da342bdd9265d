"""Normalization: words and numbers against a loop over characters, markup against HTML's definitions."""

import resource
import unicodedata
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexloom.models.normalization import (
    COMPOSABLE,
    COMPOSED,
    MARKUP,
    STRIPPED,
    WITH_MARKUP,
    WITH_STRIPPED,
    Normalization,
    normalize,
    normalize_text,
)

AS_IT_IS = Normalization(
    unicode_nfc=False,
    lower=False,
    strip_markup=False,
    strip_punctuation=False,
    strip_digits=False,
    collapse_spaces=False,
)
JOINERS = "'._-\u00b7\u2027\u05f3\u05f4\u180e\u200c"


def normalized(text: str, **rules: bool | str) -> str:
    return normalize_text(text, AS_IT_IS.model_copy(update=rules))


def words(text: str, **rules: bool | str) -> list[str]:
    """Normalize with the default rules of word vectors."""
    return normalize_text(text, Normalization().model_copy(update=rules)).split(" ")


# words


def test_all_rules_together() -> None:
    text = " <p class='x'>The 3 cats&rsquo; café,\u00a0n\u00b0&nbsp;7:<br/>NAI\u0308VE?</p>\r\n"
    assert normalize_text(text, Normalization()) == "the cats café n naïve"


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("unicode_nfc", "cafe\u0301 A\u030a", "café Å"),
        ("lower", "ÄÖÜ Straße ΣΑΣ Война", "äöü straße σασ война"),
        (
            "strip_punctuation",
            "don't — “stop” C++ 3.5€\n'quoted' a- -b",
            "don't    stop  C  3.5 \n quoted  a   b",
        ),
        ("strip_digits", "in 1984, ٣ Ⅷ ½ x² mp3 3.5 covid-19", "in  ,       x² mp3   covid-19"),
        ("collapse_spaces", "\t a \n\n b\u00a0\u2003c\u3000 ", "a b c"),
    ],
)
def test_each_rule_alone(rule: str, before: str, after: str) -> None:
    assert normalized(before, **{rule: True}) == after


@pytest.mark.parametrize(
    "word",
    [
        "don't", "o'neill", "п'ять", "l'homme", "dog's", "rock'n'roll",  # apostrophes
        "col·lecció", "u.s", "e.g", "example.com", "snake_case", "צה״ל", "ג׳ירפה",
        "co-op", "что-нибудь", "mother-in-law", "covid-19", "9-year-old",  # hyphens
        "mp3", "3d", "b2b", "x²", "h2o", "1990s",  # digits in words
        "می\u200cخواهم", "ශ්\u200dරී", "ന്\u200d",  # joiners that nobody sees
        "नमस्ते", "தமிழ்", "ไทย", "עִבְרִית", "العربية",
    ],
)  # fmt: skip
def test_joiners_do_not_split_words(word: str) -> None:
    assert words(f"«{word}», {word}! ({word}) '{word}'.") == [word] * 4
    assert normalized(f"«{word}»\n{word}.", strip_punctuation=True).split() == [word] * 2
    assert normalized(f"{word} {word}, 7", strip_digits=True) == f"{word} {word},  "


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("don’t O’Neill п’ять co\u2010op co\u2011op", ["don't", "o'neill", "п'ять", "co-op", "co-op"]),
        ("hyphen\u00adation zero\u2060width\ufeff \u200fשלום\u200e", ["hyphenation", "zerowidth", "שלום"]),
        ("ខ្មែរ\u200bភាសា", ["ខ្មែរ", "ភាសា"]),  # U+200B is a space that nobody sees
        ("<b>bo</b>ld ca<!-- c -->fé H<sub>2</sub>O caf&eacute;", ["bold", "café", "h2o", "café"]),
        (
            "wait--what and/or end…start 'tis -x- a.",
            ["wait", "what", "and", "or", "end", "start", "tis", "x", "a"],
        ),
        ("1,000 3.14 1990-1995 +7 3 4 5 ½ Ⅷ ٣ x 9", ["x"]),
        ("love \u2764\ufe0f 1\ufe0f\u20e3 you 👨\u200d👩 me", ["love", "you", "me"]),
    ],
)
def test_spelling_variants_and_non_words(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("今天天气,很好。ABC中文 mp3", "今 天 天 气 很 好 abc 中 文 mp3"),
        ("東京タワーへ", "東 京 タ ワ ー へ"),
        ("ที่นี่ ดี", "ที่ นี่ ดี"),  # a vowel and a tone stand on their consonant
        ("café по-русски", "café по-русски"),
    ],
)
def test_characters_of_unsegmented_scripts_become_words(text: str, found: str) -> None:
    assert words(text, segment="characters") == found.split(" ")
    assert normalized(text.lower(), segment="characters", strip_punctuation=True).split() == found.split(" ")


def spelled_out(text: str) -> list[str]:
    """The words of a text by a loop over its characters."""
    kinds: list[str] = []
    for letter in text:
        mark = unicodedata.category(letter)[0] == "M" or letter == "\u200d"
        if letter.isspace():
            kinds.append("space")
        elif mark and kinds and kinds[-1] in ("symbol", "joiner"):  # it stands on a symbol, and goes with it
            kinds[-1] = "symbol"
            kinds.append("symbol")
        elif mark or unicodedata.category(letter)[0] in "LN":
            kinds.append("word")
        else:
            kinds.append("joiner" if letter in JOINERS else "symbol")
    joined = [
        kind == "word" or (kind == "joiner" and kinds[i - 1 : i + 2 : 2] == ["word", "word"])
        for i, kind in enumerate(kinds)
    ]
    return "".join(letter if join else " " for letter, join in zip(text, joined, strict=True)).split(" ")


def is_number(word: str) -> bool:
    return unicodedata.category(word[0])[0] == "N" and all(
        unicodedata.category(letter)[0] in "NM" or letter in JOINERS + "\u200d" for letter in word
    )


def wanted(text: str, *, numbers: bool) -> list[str]:
    return [word for word in spelled_out(text) if word and (numbers or not is_number(word))]


CHARACTERS = st.characters(exclude_categories=["Cs", "Cn", "Co", "Cf"]) | st.sampled_from(
    " \t\n.,&;<>/!#09aZéİ\u0301\ufe0f'-_·\u200c\u200d5x"
)
TEXTS = st.text(CHARACTERS) | st.text(st.sampled_from(" \n'-a7é,\u0301\u200d"))


@settings(deadline=None)
@given(text=TEXTS, numbers=st.booleans())
def test_words_equal_those_of_a_character_loop(text: str, numbers: bool) -> None:
    text = text.replace("’", "'").replace("＇", "'").replace("\u2010", "-").replace("\u2011", "-")
    rules = {"strip_punctuation": True, "strip_digits": not numbers}
    expected = wanted(text, numbers=numbers)
    assert normalized(text, **rules, collapse_spaces=True) == " ".join(expected)
    with_spaces = normalized(text, **rules)  # the slow way, by other expressions
    assert with_spaces.split() == expected
    assert [letter for letter in with_spaces if letter in "\t\n"] == [x for x in text if x in "\t\n"]
    if not numbers:
        assert wanted(normalized(text, strip_digits=True), numbers=True) == expected


@settings(deadline=None)
@given(text=TEXTS)
def test_ascii_rows_are_normalized_like_others(text: str) -> None:
    plain = "".join(letter for letter in text if letter < "\x7f")
    for rules in (Normalization(), AS_IT_IS.model_copy(update={"strip_digits": True})):
        here, there, beyond = normalize(pa.array([plain, plain + " é", plain + " я"]), rules).to_pylist()
        assert there.split() == [*here.split(), "é"]
        assert beyond.split() == [*here.split(), "я"]


@pytest.mark.parametrize("rules", [Normalization(), Normalization(strip_digits=False), AS_IT_IS])
def test_latin_rows_are_normalized_like_others(rules: Normalization) -> None:
    letters = [chr(code) for code in range(0x2100)]
    alone = normalize(pa.array([f"x{letter}y {letter} z" for letter in letters]), rules).to_pylist()
    beside = normalize(pa.array([f"x{letter}y {letter} z я" for letter in letters]), rules).to_pylist()
    assert [f"{text} я" for text in alone] == beside


# mark-up


@pytest.mark.parametrize(
    "text",
    [
        "<unk> a <mask> b", "std::map<int, std::string> m;", "if (a<b) x = b;", "a < b > c", "i <3 you",
        "vector<T> v; List<String> s", "<john@example.com>", "<http://example.com>", "x <- y -> z",
        "if a <b and c> d", "<b", "<br", "<p class=>", "<>", "</>", "&so; R&D; x && y; int &ref;",
        "<!-- open",
        "<|endoftext|>", "#include <stdio.h>", "<ref>",
    ],
)  # fmt: skip
def test_text_that_resembles_markup_is_kept(text: str) -> None:
    assert normalized(text, strip_markup=True) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a<br />b<br>c<BR/>d</br>e", "a b c d e"),
        ("<p class='x' id=y>a</p><DIV\n data-x=\"1 > 0\" hidden>b</div >", " a  b "),
        ("wo<b>rd</b> <a href=http://x.y/z?q=1>li</a>nk x<sup>2</sup>", "word link x2"),
        ("a<!-- c\nd -->b<!DOCTYPE html>c<?xml version='1.0'?>d", "ab c d"),
        ("&amp;&lt;b&gt;&#39;&#x27;&nbsp;&Eacute;&hearts;", "&<b>''\u00a0É♥"),
        ("&amp;lt;", "&lt;"),  # once, as a browser
    ],
)
def test_markup_is_removed_as_a_browser_renders_it(text: str, left: str) -> None:
    assert normalized(text, strip_markup=True) == left


# what rules cost


def test_stripped_characters_and_documents_are_counted() -> None:
    losses: Counter[str] = Counter()
    texts = ["<b>a</b>, 12 b", "c\u3000d \n e", "cafe\u0301!", "co-op <i>x</i>"]
    assert normalize(pa.array(texts), Normalization(), losses).to_pylist() == [
        "a b", "c d e", "café", "co-op x",
    ]  # fmt: skip
    assert losses == {MARKUP: 14, WITH_MARKUP: 2, STRIPPED: 4, WITH_STRIPPED: 2, COMPOSED: 1}


def test_no_rules_change_nothing() -> None:
    losses: Counter[str] = Counter()
    texts = [" Ä<b>1</b> &amp;\t ", "…", "", "\u212b"]
    assert normalize(pa.array(texts), AS_IT_IS, losses).to_pylist() == texts
    assert not +losses


def test_composable_covers_all_characters_that_nfc_changes() -> None:
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    found = pc.match_substring_regex(pa.array(letters), f"[{COMPOSABLE}]").to_pylist()
    changed = [c for c in letters if unicodedata.normalize("NFC", c) != c or unicodedata.combining(c)]
    assert set(changed) <= {letter for letter, there in zip(letters, found, strict=True) if there}


def test_characters_grow_at_most_threefold() -> None:
    letters = pa.array([chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000])
    rules = AS_IT_IS.model_copy(update={"unicode_nfc": True, "lower": True, "segment": "characters"})
    grown = pc.binary_length(normalize(letters, rules))
    assert pc.all(pc.less_equal(grown, pc.multiply(3, pc.binary_length(letters)))).as_py()


def test_expanding_text_is_composed_in_bounded_memory() -> None:
    letters = "\U0001d160" * 250_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(normalized(letters, unicode_nfc=True)) == 3 * len(letters)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KB; the text has 1 MB
