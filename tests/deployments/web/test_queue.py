"""Queues: disconnected clients do not delay others, and a full queue is reported."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import gradio as gr
import pytest
from markupsafe import Markup

from lexloom.deployments.web import queue as module
from lexloom.deployments.web.queue import Queue, Sessions, TrackSessions, in_turn, session_of

GRACE = 0.1


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", GRACE)


class Page:
    """An endless handler; counts its steps and its running requests."""

    def __init__(self, **limits: int) -> None:
        self.sessions = Sessions()
        self.made = self.at_work = self.most_at_work = 0
        self._lock = threading.Lock()
        self._ask: Any = in_turn(self.answer, self.sessions, Queue(**limits), Markup)

    def answer(self, text: str) -> Iterator[Markup]:
        with self._lock:
            self.at_work += 1
            self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            while True:
                time.sleep(0.002)
                self.made += 1
                yield Markup(text)
        finally:
            self.at_work -= 1

    def ask(self, session: str) -> AsyncGenerator[Markup, None]:
        request = gr.Request(session_hash=session)
        return self._ask(request, f"for {session}")  # type: ignore[no-any-return]

    def open(self, session: str) -> None:
        self.sessions.get(session).open()

    def close(self, session: str) -> None:
        self.sessions.get(session).close()


async def drained(answer: AsyncGenerator[Markup, None]) -> list[Markup]:
    return [piece async for piece in answer]


def test_a_request_without_a_client_is_not_started() -> None:
    async def run() -> None:
        page = Page()
        answers = await asyncio.gather(*(drained(page.ask(f"gone {number}")) for number in range(300)))
        assert {str(piece) for answer in answers for piece in answer} == {
            "no client connected within 0.1 seconds to receive the result: try again"
        }
        assert page.made == 0
        page.open("next")
        begun = time.monotonic()
        assert await anext(page.ask("next")) == "for next"
        assert time.monotonic() - begun < GRACE

    asyncio.run(run())


def test_a_request_ends_when_its_client_disconnects_and_the_next_starts() -> None:
    async def run() -> None:
        page = Page(max_running=1)
        page.open("first")
        first = asyncio.create_task(drained(page.ask("first")))
        page.open("second")
        second = page.ask("second")
        waiting = asyncio.create_task(anext(second))
        await asyncio.sleep(3 * GRACE)
        assert page.made > 1, "a reader that stays is served for as long as it stays"
        assert not waiting.done()
        page.close("first")
        assert await waiting == "for second"
        assert set(await first) == {"for first"}
        assert page.most_at_work == 1
        await second.aclose()
        assert page.at_work == 0

    asyncio.run(run())


def test_clients_that_disconnected_in_the_queue_are_skipped() -> None:
    async def run() -> None:
        page = Page(max_running=1)
        page.open("first")
        first = page.ask("first")
        await anext(first)
        gone = []
        for number in range(50):
            page.open(f"gone {number}")
            gone.append(asyncio.create_task(drained(page.ask(f"gone {number}"))))
            await asyncio.sleep(0)
            page.close(f"gone {number}")
        page.open("next")
        waiting = asyncio.create_task(anext(page.ask("next")))
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await first.aclose()
        assert await waiting == "for next"
        assert time.monotonic() - begun < GRACE

    asyncio.run(run())


def test_a_full_queue_refuses_the_next_request_at_once() -> None:
    async def run() -> None:
        page = Page(max_running=2, max_waiting=3)
        tasks = []
        for number in range(5):
            page.open(str(number))
            tasks.append(asyncio.create_task(drained(page.ask(str(number)))))
        await asyncio.sleep(0.02)
        page.open("late")
        said = await drained(page.ask("late"))
        assert said == [
            "the page is busy: 2 requests are running and 3 are waiting; try again in a minute",
        ]
        assert page.most_at_work == 2
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_a_cancelled_request_lets_the_next_one_start() -> None:
    """The Stop button makes Gradio cancel the task that requests the next piece."""

    async def run() -> None:
        page = Page(max_running=1)
        for name in ("first", "second", "third"):
            page.open(name)
        first = asyncio.create_task(drained(page.ask("first")))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(drained(page.ask("second")))
        third = page.ask("third")
        waiting = asyncio.create_task(anext(third))
        await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        assert await waiting == "for third"
        assert page.most_at_work == 1, "the piece that was being worked out came to its end before"
        await third.aclose()
        assert page.at_work == 0

    asyncio.run(run())


def test_a_browser_may_close_a_stream_before_it_opens_the_next() -> None:
    async def run() -> None:
        page = Page()
        page.open("reader")
        answer = page.ask("reader")
        await anext(answer)
        page.close("reader")
        await anext(answer)
        page.open("reader")
        await asyncio.sleep(2 * GRACE)
        assert await anext(answer) == "for reader"
        await answer.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "query", "session"),
    [
        ("GET", "/gradio_api/queue/data", b"session_hash=ab1", "ab1"),
        ("GET", "/behind/a/proxy/gradio_api/queue/data", b"x=1&session_hash=ab1", "ab1"),
        ("GET", "/gradio_api/call/write/ab1", b"", "ab1"),
        ("GET", "/gradio_api/call/v2/write/ab1", b"", "ab1"),
        ("POST", "/gradio_api/call/write", b"", None),
        ("POST", "/gradio_api/queue/join", b"", None),
        ("GET", "/gradio_api/queue/data", b"", None),
        ("GET", "/config", b"session_hash=ab1", None),
    ],
)
def test_an_event_stream_names_its_session(method: str, path: str, query: bytes, session: str | None) -> None:
    assert session_of({"type": "http", "method": method, "path": path, "query_string": query}) == session


def test_a_session_is_kept_while_its_stream_is_open() -> None:
    async def run() -> None:
        sessions = Sessions()
        seen = []

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            seen.append(sessions.get("ab1").streams)
            raise ConnectionResetError

        watched = TrackSessions(stream, sessions)
        scope = {"type": "http", "method": "GET", "path": "/queue/data", "query_string": b"session_hash=ab1"}
        with pytest.raises(ConnectionResetError):
            await watched(scope, None, None)  # type: ignore[arg-type]
        assert seen == [1]
        assert not sessions._sessions

    asyncio.run(run())
