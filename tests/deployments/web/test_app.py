"""The page as it is served: by its API, and in a real browser.

The browser tests need Debian's chromium and are skipped where it is missing; nothing else here is.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from urllib.request import Request, urlopen

import httpx
import pytest

from lexloom.deployments.web.app import main
from lexloom.tasks.store.artifacts import Store
from tests.deployments.browser import Browser
from tests.deployments.store import shelve, write_transformer, write_words

in_chromium = pytest.mark.needs("chromium")
TABS = {"Classify": "classify", "Write": "write", "Next token": "next-token", "Words": "words"}
Names = dict[str, str]


@contextmanager
def served(store: Path, *program: str) -> Iterator[str]:
    """The page's address, while a process of its own serves it."""
    process = subprocess.Popen(
        [
            sys.executable,
            *(program or ("-m", "lexloom.deployments.web.app")),
            "--port",
            "0",
            "--store",
            str(store),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said
        yield found[0]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def url(filled_and_names: tuple[Store, Names]) -> Iterator[str]:
    with served(filled_and_names[0].root) as address:
        yield address


SLOW_SECONDS = 0.2
WRITES_SLOWLY = f"""
import sys, time
from lexloom.deployments.web import app
from lexloom.models.language_model import LanguageModel
def slowly(*arguments):
    for number in range(1000):
        time.sleep({SLOW_SECONDS})
        yield ["x"]
LanguageModel.generate = slowly
sys.exit(app.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """A page on a store of one language model, which writes for minutes; and the store."""
    growing = Store(tmp_path_factory.mktemp("growing"))
    shelve(growing, "train_transformer", "t1", write_transformer)
    with served(growing.root, "-c", WRITES_SLOWLY) as address:
        yield address, growing


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


def text_of(answer: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", answer))


# files


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "README.md", str(Path(__file__)), "../../../../etc/passwd", "{store}/.lexloom"]
)
def test_no_file_of_the_machine_is_served(url: str, filled_and_names: tuple[Store, Names], path: str) -> None:
    asked = httpx.get(f"{url}/gradio_api/file={path.format(store=filled_and_names[0].root)}")
    assert asked.status_code in (403, 404)


def test_no_upload_is_taken(url: str) -> None:
    asked = httpx.post(f"{url}/gradio_api/upload", files={"files": b"content"})
    assert asked.status_code == 403


# starting


def test_a_port_in_use_ends_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    said = capsys.readouterr().err.strip()
    assert said == f"error: port {port} of 127.0.0.1 is in use: name another with --port, or 0 for any"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port is 70000: it must be from 0, which finds a free one, to 65535"),
        (["--host", "203.0.113.7", "--port", "0"], "the page can't be served at 203.0.113.7:0"),
    ],
)
def test_an_address_that_can_not_be_served_ends_in_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"error: {said}")
    assert len(printed.splitlines()) == 1


# the API


def test_every_endpoint_answers(url: str, filled: Store, names: Names) -> None:
    from gradio_client import Client

    client = Client(url, verbose=False, analytics_enabled=False)
    try:

        def ask(endpoint: str, *given: object) -> str:
            return text_of(str(client.predict(*given, api_name=endpoint)))

        models, absent = client.predict(None, api_name="/words_models")
        assert [name for _, name in models["choices"]] == [names["words"]]
        assert models["value"] == names["words"]
        assert absent["visible"] is False
        assert "0.98" in ask("/neighbours", names["words"], "war")
        assert "treaty" in ask("/analogy", names["words"], "war", "peace", "wars")
        assert "Word attributions" in ask("/classify", names["classifier"], "the film was good")
        assert "%" in ask("/next_token", names["window"], "the people")
        draws = (20, 0.8, 0, 1, 0, 1, 7)
        assert ask("/write", names["transformer"], "the people", *draws).startswith("the people")
        assert "is not one of the 6 words" in ask("/neighbours", names["words"], "nonsense")
    finally:
        client.close()


def test_the_browser_is_told_to_ask_no_other_host(url: str) -> None:
    with urlopen(url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'self'"
    assert directives["connect-src"] == "'self'"
    assert not any("http" in sources or "*" in sources for sources in directives.values())
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"([^\"]+)\"", page)
    assert loaded
    assert not [address for address in loaded if re.match(r"(https?:)?//", address)]


def test_requests_whose_readers_have_gone_do_not_hold_up_the_next(slow: tuple[str, Store]) -> None:
    """Each would write for minutes, two at a time. Half of the readers never came, the others left."""
    from gradio_client import Client

    address, _ = slow
    given = ["train_transformer/t1", "the people", 1000, 0.8, 0, 1, 0, 1, 7]
    client = Client(address, verbose=False, analytics_enabled=False)
    try:
        functions = {each.api_name: number for number, each in client.endpoints.items()}
        for number in range(20):
            asked = {"data": given, "fn_index": functions["/write"], "session_hash": f"gone{number}"}
            request = Request(
                f"{address}/gradio_api/queue/join",
                json.dumps(asked).encode(),
                {"Content-Type": "application/json"},
            )
            urlopen(request).close()
            if number % 2:
                with urlopen(f"{address}/gradio_api/queue/data?session_hash=gone{number}") as stream:
                    stream.readline()
        begun = time.monotonic()
        job = client.submit(*given, api_name="/write")
        assert text_of(str(next(iter(job)))).startswith("the peoplex")
        assert time.monotonic() - begun < 15
        job.cancel()
    finally:
        client.close()


# in a browser


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


@in_chromium
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
    assert "these tokens begin a text" in until_shown(
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


@in_chromium
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


@in_chromium
def test_a_neighbour_that_is_chosen_is_looked_up(browser: Browser, url: str) -> None:
    browser.open(url)
    panel = show(browser, "Words")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    until_shown(browser, f"{panel} [data-pick=treaty]")
    browser.run(f"document.querySelector('{panel} [data-pick=treaty]').click()")
    browser.wait(f"document.querySelector('{panel} h3')?.innerText === 'treaty'")
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]').value") == "treaty"


@in_chromium
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


@in_chromium
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


@in_chromium
def test_models_that_are_trained_while_the_page_is_open_appear(
    browser: Browser, slow: tuple[str, Store]
) -> None:
    address, growing = slow
    browser.open(address)
    panel = show(browser, "Words")
    said = until_shown(browser, f"{panel} .missing")
    assert said.split("\n\n") == [
        "This store has no word vectors yet.",
        "Train one, then press Refresh: lexloom word2vec",
    ]
    assert browser.run(f"document.querySelector('{panel} input[placeholder=peace]')") is None
    shelve(growing, "train_word2vec", "fresh", write_words)
    browser.run(f"document.querySelector('{panel} .purpose button').click()")
    fill_in(browser, f"{panel} input[placeholder=peace]", "war")
    browser.press("Enter")
    assert until_shown(browser, f"{panel} .near").startswith("wars")
    assert browser.run(f"document.querySelector('{panel} .missing')") is None


@in_chromium
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
