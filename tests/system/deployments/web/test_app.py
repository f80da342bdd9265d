"""The web page in Debian's Chromium."""

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
    """Open a tab; return the selector of its panel."""
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


def wait_for_text(browser: Browser, selector: str) -> str:
    """Wait for an element, and return its text."""
    browser.wait(f"document.querySelector('{selector}') !== null")
    return str(browser.run(f"document.querySelector('{selector}').innerText"))


def test_every_tab_works_by_keyboard_without_requests_to_other_hosts(
    browser: Browser, url: str, names: Names
) -> None:
    browser.open(url)

    panel = show(browser, "Classify")
    fill_in(browser, f"{panel} textarea", "the film was {{7*7}} ${7*7} good")
    browser.press("Enter")
    assert wait_for_text(browser, f"{panel} .shaded") == "the film was {{7*7}} ${7*7} good"  # no template

    panel = show(browser, "Write")
    fill_in(browser, f"{panel} textarea", "the people")
    browser.press("Enter")
    browser.wait(f"document.querySelector('{panel} .sample')?.innerText.length > 10")
    browser.wait(f"document.querySelector('{panel} .caret') === null")

    panel = show(browser, "Next token")
    assert "these tokens start a text" in wait_for_text(
        browser, f"{panel} .answer .note"
    )  # before anything is typed
    fill_in(browser, f"{panel} .tall textarea", "th")
    browser.wait(f"document.querySelectorAll('{panel} .seen code').length === 2")  # while one types

    panel = show(browser, "Words")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    assert wait_for_text(browser, f"{panel} .near").split()[:2] == ["wars", "0.98"]
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


def test_a_selected_token_is_appended_and_focus_stays_on_the_tokens(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Next token")
    so_far = f"document.querySelector('{panel} .tall textarea').value"
    wait_for_text(browser, f"{panel} [data-pick]")
    picked = ""
    for _ in range(2):
        picked += browser.run(f"document.querySelector('{panel} [data-pick]').dataset.pick")
        browser.run(f"document.querySelector('{panel} [data-pick]').focus()")
        browser.press("Enter")
        browser.wait(f"{so_far} === {json.dumps(picked)}")
        browser.wait(f"document.querySelectorAll('{panel} .seen code').length === {len(picked)}")
        browser.wait("document.activeElement.dataset.pick !== undefined")


def test_a_selected_neighbour_is_looked_up(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Words")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    wait_for_text(browser, f"{panel} [data-pick=treaty]")
    browser.run(f"document.querySelector('{panel} [data-pick=treaty]').click()")
    browser.wait(f"document.querySelector('{panel} h3')?.innerText === 'treaty'")
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]').value") == "treaty"


def test_bad_input_shows_an_error_in_place(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Classify")
    browser.wait(f"document.querySelector('{panel} textarea') !== null")
    browser.run(f"document.querySelector('{panel} button.primary').click()")
    said = wait_for_text(browser, f"{panel} [role=alert]")
    assert said == "The text is empty: enter a sentence or a review."
    panel = show(browser, "Write")
    fill_in(browser, f"{panel} textarea", "Ü")
    browser.press("Enter")
    assert wait_for_text(browser, f"{panel} [role=alert]").startswith(
        "The character 'Ü' (U+00DC) is not one of"
    )


@pytest.mark.parametrize(
    ("dark", "paper", "ink"),
    [(False, "rgb(246, 244, 240)", "rgb(34, 32, 29)"), (True, "rgb(21, 22, 26)", "rgb(233, 230, 225)")],
)
def test_the_page_fits_a_phone_and_follows_the_color_scheme(
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
                wait_for_text(browser, f"{panel} .map-narrow svg")
                assert browser.run(f"document.querySelector('{panel} .map-wide').offsetParent") is None
            assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("getComputedStyle(document.body).backgroundColor") == paper
        assert browser.run("getComputedStyle(document.querySelector('.lexloom')).color") == ink
    finally:
        browser.resize(1280, 900)
        browser.scheme(False)


def test_new_models_appear_while_the_page_is_open(browser: Browser, slow: tuple[str, Store]) -> None:
    address, growing = slow
    browser.open(address)
    panel = show(browser, "Words")
    said = wait_for_text(browser, f"{panel} .missing")
    assert said.split("\n\n") == [
        "This store has no word vectors yet.",
        "Train one with lexloom word2vec, then press Refresh.",
    ]
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]')") is None
    shelve(growing, "train_word2vec", "fresh", write_words)
    browser.run(f"document.querySelector('{panel} .purpose button').click()")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    assert wait_for_text(browser, f"{panel} .near").startswith("wars")
    assert browser.run(f"document.querySelector('{panel} .missing')") is None


def test_text_generation_can_be_stopped(browser: Browser, slow: tuple[str, Store]) -> None:
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
