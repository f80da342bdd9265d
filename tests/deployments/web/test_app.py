"""The served web page, tested through its API."""

import json
import re
import socket
import time
from html import unescape
from pathlib import Path
from urllib.request import Request, urlopen

import httpx
import pytest

from lexloom.deployments.web.app import main
from lexloom.tasks.store.artifacts import Store
from tests.deployments.web.conftest import Names


def text_of(answer: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", answer))


# files


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "README.md", str(Path(__file__)), "../../../../etc/passwd", "{store}/.lexloom"]
)
def test_local_files_are_not_served(url: str, filled_and_names: tuple[Store, Names], path: str) -> None:
    asked = httpx.get(f"{url}/gradio_api/file={path.format(store=filled_and_names[0].root)}")
    assert asked.status_code in (403, 404)


def test_uploads_are_rejected(url: str) -> None:
    asked = httpx.post(f"{url}/gradio_api/upload", files={"files": b"content"})
    assert asked.status_code == 403


# starting


def test_a_port_in_use_is_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    said = capsys.readouterr().err.strip()
    assert (
        said == f"error: port {port} on 127.0.0.1 is in use: choose another with --port (0 for any free port)"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port is 70000: it must be between 1 and 65535, or 0 for any free port"),
        (["--host", "203.0.113.7", "--port", "0"], "can't listen on 203.0.113.7:0"),
    ],
)
def test_an_invalid_address_is_a_one_line_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"error: {said}")
    assert len(printed.splitlines()) == 1


# the API


def test_every_endpoint_responds(url: str, filled: Store, names: Names) -> None:
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
        assert "is not in the vocabulary of 6 words" in ask("/neighbours", names["words"], "nonsense")
    finally:
        client.close()


def test_the_content_security_policy_forbids_other_hosts(url: str) -> None:
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


def test_requests_of_disconnected_clients_do_not_block_others(slow: tuple[str, Store]) -> None:
    """Each request takes minutes, two at a time. Half of the clients never connect, half disconnect."""
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
