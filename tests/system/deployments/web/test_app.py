"""The page in a real browser, Debian's chromium."""

import json
import time
from collections.abc import Iterator

import pytest

from lexloom.tasks.store.artifacts import Store
from tests.deployments.store import shelve, write_words
from tests.deployments.web.conftest import SLOW_SECONDS, Names
from tests.system.deployments.browser import Browser

pytestmark = pytest.mark.needs("chromium")
TABS = {"Classify": "classify", "Write": "write", "Next token": "next-token", "Words": "words"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def show(browser: Browser, tab: str) -> str:
    """Opens a tab; returns the selector of its panel."""
    browser.run(
        f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText.trim() === '{tab}').click()"
    )
    panel = f"#{TABS[tab]}"
    browser.wait(f"document.querySelector('{panel}')?.offsetParent !== null")
    return panel


def fill_in(browser: Browser, selector: str, text: str) -> None:
    browser.wait(f"document.querySelector('{selector}') !== null")
    browser.run(
        f"document.querySelector('{selector}').focus(); document.querySelector('{selector}').select()"
    )
    browser.type(text)


def until_shown(browser: Browser, selector: str) -> str:
    """The text of an element, once it is there."""
    browser.wait(f"document.querySelector('{selector}') !== null")
    return str(browser.run(f"document.querySelector('{selector}').innerText"))


def test_every_tab_answers_by_keyboard_and_asks_no_other_host(
    browser: Browser, url: str, names: Names
) -> None:
    browser.open(url)

    panel = show(browser, "Classify")
    fill_in(browser, f"{panel} textarea", "the film was {{7*7}} ${7*7} good")
    browser.press("Enter")
    assert until_shown(browser, f"{panel} .shaded") == "the film was {{7*7}} ${7*7} good"  # no template

    panel = show(browser, "Write")
    fill_in(browser, f"{panel} textarea", "the people")
    browser.press("Enter")
    browser.wait(f"document.querySelector('{panel} .sample')?.innerText.length > 10")
    browser.wait(f"document.querySelector('{panel} .caret') === null")

    panel = show(browser, "Next token")
    assert "these tokens start a text" in until_shown(
        browser, f"{panel} .answer .note"
    )  # before anything is typed
    fill_in(browser, f"{panel} .tall textarea", "th")
    browser.wait(f"document.querySelectorAll('{panel} .seen code').length === 2")  # while one types

    panel = show(browser, "Words")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    assert until_shown(browser, f"{panel} .near").split()[:2] == ["wars", "0.98"]
    map_width, card_width = (
        browser.run(f"document.querySelector('{panel} {part}').getBoundingClientRect().width")
        for part in (".map-wide svg", ".map-wide")
    )
    assert 0 < map_width <= card_width
    for place, word in enumerate(("war", "peace", "wars"), 1):
        fill_in(browser, f"{panel} .analogy .block:nth-of-type({place}) input", word)
    browser.press("Enter")
    browser.wait(f"document.querySelector('{panel}').innerText.includes('war is to peace as wars is to')")

    assert browser.hosts == {url.removeprefix("http://")}
    assert browser.errors == []


def test_a_chosen_token_is_appended_and_the_keyboard_stays_among_the_tokens(
    browser: Browser, url: str
) -> None:
    browser.open(url)
    panel = show(browser, "Next token")
    so_far = f"document.querySelector('{panel} .tall textarea').value"
    until_shown(browser, f"{panel} [data-pick]")
    picked = ""
    for _ in range(2):
        picked += browser.run(f"document.querySelector('{panel} [data-pick]').dataset.pick")
        browser.run(f"document.querySelector('{panel} [data-pick]').focus()")
        browser.press("Enter")
        browser.wait(f"{so_far} === {json.dumps(picked)}")
        browser.wait(f"document.querySelectorAll('{panel} .seen code').length === {len(picked)}")
        browser.wait("document.activeElement.dataset.pick !== undefined")


def test_a_neighbour_that_is_chosen_is_looked_up(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Words")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    until_shown(browser, f"{panel} [data-pick=treaty]")
    browser.run(f"document.querySelector('{panel} [data-pick=treaty]').click()")
    browser.wait(f"document.querySelector('{panel} h3')?.innerText === 'treaty'")
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]').value") == "treaty"


def test_bad_input_is_answered_in_a_sentence_in_its_place(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Classify")
    browser.wait(f"document.querySelector('{panel} textarea') !== null")
    browser.run(f"document.querySelector('{panel} button.primary').click()")
    said = until_shown(browser, f"{panel} [role=alert]")
    assert said == "The text is empty: enter a sentence or a review."
    panel = show(browser, "Write")
    fill_in(browser, f"{panel} textarea", "Ü")
    browser.press("Enter")
    assert until_shown(browser, f"{panel} [role=alert]").startswith(
        "The character 'Ü' (U+00DC) is not one of"
    )


@pytest.mark.parametrize(
    ("dark", "paper", "ink"),
    [(False, "rgb(246, 244, 240)", "rgb(34, 32, 29)"), (True, "rgb(21, 22, 26)", "rgb(233, 230, 225)")],
)
def test_it_fits_a_phone_in_the_colours_that_its_reader_prefers(
    browser: Browser, url: str, dark: bool, paper: str, ink: str
) -> None:
    browser.resize(390, 844)
    browser.scheme(dark)
    try:
        browser.open(url)
        for tab in TABS:
            panel = show(browser, tab)
            if tab == "Words":
                fill_in(browser, f"{panel} input[placeholder=peace]", "war")
                browser.press("Enter")
                until_shown(browser, f"{panel} .map-narrow svg")
                assert browser.run(f"document.querySelector('{panel} .map-wide').offsetParent") is None
            assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("getComputedStyle(document.body).backgroundColor") == paper
        assert browser.run("getComputedStyle(document.querySelector('.lexloom')).color") == ink
    finally:
        browser.resize(1280, 900)
        browser.scheme(False)


def test_models_that_are_trained_while_the_page_is_open_appear(
    browser: Browser, slow: tuple[str, Store]
) -> None:
    address, growing = slow
    browser.open(address)
    panel = show(browser, "Words")
    said = until_shown(browser, f"{panel} .missing")
    assert said.split("\n\n") == [
        "This store has no word vectors yet.",
        "Train one with lexloom word2vec, then press Refresh.",
    ]
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]')") is None
    shelve(growing, "train_word2vec", "fresh", write_words)
    browser.run(f"document.querySelector('{panel} .purpose button').click()")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    assert until_shown(browser, f"{panel} .near").startswith("wars")
    assert browser.run(f"document.querySelector('{panel} .missing')") is None


def test_what_is_being_written_can_be_stopped(browser: Browser, slow: tuple[str, Store]) -> None:
    address, _ = slow
    browser.open(address)
    panel = show(browser, "Write")
    fill_in(browser, f"{panel} textarea", "the people")
    browser.press("Enter")
    written = f"document.querySelector('{panel} .sample')?.innerText.length"
    browser.wait(f"{written} > 14 && document.querySelector('{panel} .caret') !== null")
    browser.run(f"[...document.querySelectorAll('{panel} button')].find(b => b.innerText === 'Stop').click()")
    browser.wait(f"document.querySelector('{panel} .caret') === null")
    length = browser.run(written)
    time.sleep(5 * SLOW_SECONDS)
    assert 14 < browser.run(written) == length < 100
