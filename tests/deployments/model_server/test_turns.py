"""The queue of the model server: one request at a time, and none for a client that has disconnected."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from lexloom.deployments.cli.serve import load_served
from lexloom.deployments.model_server import turns as module
from lexloom.deployments.model_server.app import model_app
from lexloom.deployments.model_server.turns import Turns
from lexloom.models.sampling import Sampling
from lexloom.tasks.store.artifacts import Store
from tests.deployments.model_server.test_app import ADDRESS, completion, problem
from tests.deployments.store import tokenizer


class Slow:
    """A language model that yields a character whenever the test lets it."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.running = self.most = self.made = 0

    def prompt(self, text: str) -> str:
        return text

    def generate(self, prompts: list[str], sampling: Sampling) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(sampling.max_tokens):
                time.sleep(0.001)
                self.made += 1
                yield ["x"]
            yield [""]
        finally:
            self.running -= 1


@pytest.fixture
def slow(filled: Store, names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Slow:
    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))
    model = Slow()
    monkeypatch.setattr("lexloom.models.registry.ModelFamily.load", lambda *given: model)
    return model


def test_requests_run_one_at_a_time_and_a_full_queue_is_busy(slow: Slow) -> None:
    app = model_app(load_served("t1", "cpu"), "127.0.0.1", turns=Turns(max_waiting=2))

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
            return await asyncio.gather(
                *(client.post("/v1/completions", json=completion(stream=bool(n % 2))) for n in range(6))
            )

    responses = asyncio.run(run())
    assert sorted(each.status_code for each in responses) == [200] * 3 + [503] * 3
    refused = next(each for each in responses if each.status_code == 503)
    assert refused.headers["Retry-After"] == "5"
    assert problem(refused)["code"] == "busy"
    assert slow.most == 1


class Client:
    """A connection that the test controls: it may disconnect, or stop reading."""

    def __init__(self, app: Any, **changes: Any) -> None:
        self.body = json.dumps(completion(**changes)).encode()
        self.gone, self.sent = asyncio.Event(), list[dict[str, Any]]()
        self.reads = True
        self.asked = False
        headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "scheme": "http",
            "server": ("127.0.0.1", 8000),
            "path": "/v1/completions",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
        }
        self.task = asyncio.create_task(app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if not self.reads:
            await asyncio.sleep(3600)
        self.sent.append(message)

    async def first_part(self) -> None:
        while len(self.sent) < 2:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_the_model(slow: Slow, stream: bool) -> None:
    async def run() -> None:
        app = model_app(load_served("t1", "cpu"), "127.0.0.1", turns=Turns(max_waiting=1))
        first = Client(app, stream=stream, max_tokens=4_000)
        while not slow.made:
            await asyncio.sleep(0.001)
        waits = Client(app, max_tokens=4_000)
        await asyncio.sleep(0.01)
        first.gone.set()
        waits.gone.set()
        await asyncio.wait_for(asyncio.gather(first.task, waits.task), 5)
        assert slow.running == 0
        made = slow.made
        assert made < 1_000
        last = Client(app, max_tokens=3)
        await asyncio.wait_for(last.task, 5)
        assert last.sent[0]["status"] == 200
        assert slow.made == made + 3

    asyncio.run(run())


def test_a_client_that_does_not_read_its_stream_is_dropped(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.05)

    async def run() -> None:
        app = model_app(load_served("t1", "cpu"), "127.0.0.1")
        stuck = Client(app, stream=True, max_tokens=4_000)
        await stuck.first_part()
        stuck.reads = False
        await asyncio.wait_for(stuck.task, 5)
        last = Client(app, max_tokens=3)
        await asyncio.wait_for(last.task, 5)
        assert last.sent[0]["status"] == 200

    asyncio.run(run())
    assert "did not read its stream" in caplog.text


def test_a_failure_in_a_stream_is_its_last_event(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*given: object) -> Any:
        yield ["x"]
        raise RuntimeError("secret path")

    slow.generate = breaks  # type: ignore[method-assign]
    app = model_app(load_served("t1", "cpu"), "127.0.0.1")

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
            return await client.post("/v1/completions", json=completion(stream=True))

    *_, last, end = asyncio.run(run()).text.split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
