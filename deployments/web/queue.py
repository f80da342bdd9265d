"""Queues of requests: a few run at a time, the others wait in a queue of bounded length, and requests of
clients that have disconnected are dropped.

A client reads the results of its session from an event stream. A request whose session has no open stream is
not started; if the stream closes, the request ends after its current step.
"""

import asyncio
import inspect
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing, suppress
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
import gradio as gr
from markupsafe import Markup
from starlette.types import ASGIApp, Receive, Scope, Send

GRACE_SECONDS = 2.0  # between a request and its event stream: some round trips of a slow network
MAX_RUNNING = 2  # requests of one kind that run at the same time
MAX_WAITING = 20  # requests of one kind that wait
STREAM = re.compile(r"/queue/data/?$")
EVENT = re.compile(r"/call/(?:v2/)?[^/]+/([^/]+)/?$")  # an event is a session of its own


class Session:
    """A client's session: its open event streams and unfinished requests."""

    def __init__(self) -> None:
        self.streams = 0
        self.requests = 0
        self._connected = asyncio.Event()
        self._disconnected_at = time.monotonic()

    def open(self) -> None:
        self.streams += 1
        self._connected.set()

    def close(self) -> None:
        self.streams -= 1
        if not self.streams:
            self._connected.clear()
            self._disconnected_at = time.monotonic()

    @property
    def gone(self) -> bool:
        """Whether no stream has been open for a while: a browser closes one before it opens the next."""
        return not self.streams and time.monotonic() - self._disconnected_at > GRACE_SECONDS

    async def connected(self) -> bool:
        """Wait for a stream for at most GRACE_SECONDS; return whether there is one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._connected.wait(), GRACE_SECONDS)
        return self._connected.is_set()


class Sessions:
    """The sessions of the page, by their hash."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def get(self, name: str) -> Session:
        return self._sessions.setdefault(name, Session())

    def forget(self, name: str) -> None:
        """Drop a session that has neither a stream nor a request."""
        session = self._sessions.get(name)
        if session is not None and not session.streams and not session.requests:
            del self._sessions[name]


class TrackSessions:
    """ASGI middleware that records which sessions have an event stream open."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = session_of(scope)
        if name is None:
            await self._app(scope, receive, send)
            return
        session = self._sessions.get(name)
        session.open()
        try:
            await self._app(scope, receive, send)
        finally:
            session.close()
            self._sessions.forget(name)


def session_of(scope: Scope) -> str | None:
    """Return the session whose event stream is requested; None for all other requests."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    if STREAM.search(scope["path"]):
        return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])), None)
    event = EVENT.search(scope["path"])
    return event[1] if event else None


class BusyError(Exception):
    """Too many requests wait; str() is a sentence for the user."""


class Queue:
    """The requests of one kind that wait."""

    def __init__(self, max_running: int = MAX_RUNNING, max_waiting: int = MAX_WAITING) -> None:
        self._max_running, self._max_waiting = max_running, max_waiting
        self._running = 0
        self._waiting = deque[tuple[Session, asyncio.Future[bool]]]()

    def join(self, session: Session) -> asyncio.Future[bool]:
        """Return a future: True once the request may run, False if its session has gone before.

        Raises:
            BusyError: too many requests wait.
        """
        waiting = sum(bool(other.streams) for other, _ in self._waiting)
        if self._running >= self._max_running and waiting >= self._max_waiting:
            raise BusyError(
                f"the page is busy: {self._running} requests are running and {waiting} are waiting; try again"
                " in a minute"
            )
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((session, turn))
        self._start_next()
        return turn

    def leave(self) -> None:
        """End a running request, and start the next one."""
        self._running -= 1
        self._start_next()

    def _start_next(self) -> None:
        still = deque[tuple[Session, asyncio.Future[bool]]]()
        # sessions without a stream are reconnecting or gone: the others come first
        for session, turn in sorted(self._waiting, key=lambda waiting: not waiting[0].streams):
            if turn.done():  # cancelled
                continue
            if session.gone:
                turn.set_result(False)
            elif self._running < self._max_running:
                self._running += 1
                turn.set_result(True)
            else:
                still.append((session, turn))
        self._waiting = still


Steps = Generator[Markup, None, None]
Handler = Callable[..., Steps]


def in_turn(
    handler: Handler, sessions: Sessions, queue: Queue, error_message: Callable[[str], Markup]
) -> Callable[..., AsyncGenerator[Markup, None]]:
    """Return the handler for Gradio: it runs in threads, in its turn, and while its client is connected.

    `error_message` renders a sentence.
    """

    async def handle(request: gr.Request, *inputs: Any) -> AsyncGenerator[Markup, None]:
        name = request.session_hash or ""
        session = sessions.get(name)
        session.requests += 1
        try:
            if not await session.connected():
                yield error_message(
                    f"no client connected within {GRACE_SECONDS:g} seconds to receive the result: try again"
                )
                return
            try:
                turn = queue.join(session)
            except BusyError as error:
                yield error_message(str(error))
                return
            async with aclosing(run_steps(handler(*inputs), session, turn, queue)) as steps:
                async for step in steps:
                    yield step
        finally:
            session.requests -= 1
            sessions.forget(name)

    # Gradio passes the request to the parameter with this annotation, and the inputs by the handler's names
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    signature = inspect.signature(handler)
    handle.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    return handle


async def run_steps(
    steps: Steps, session: Session, turn: asyncio.Future[bool], queue: Queue
) -> AsyncGenerator[Markup, None]:
    """Yield the steps of a result, from its turn on and until its session has gone."""
    try:
        may_run = await turn
    except asyncio.CancelledError:
        if turn.done() and not turn.cancelled() and turn.result():
            queue.leave()
        turn.cancel()
        raise
    if not may_run:
        return
    step: asyncio.Future[Markup | None] | None = None

    def end(_: object = None) -> None:
        with closing(steps):
            queue.leave()

    try:
        while not session.gone:
            step = asyncio.ensure_future(anyio.to_thread.run_sync(next, steps, None))
            result = await asyncio.shield(step)
            if result is None:
                return
            yield result
    finally:
        # a cancelled request does not wait for its current step, but the next request in the queue does
        if step is None or step.done():
            end()
        else:
            step.add_done_callback(end)
