"""Who is answered when: only readers that are there, a few at a time, the others in a bounded line.

A reader takes the page's answers from an event stream of its session. An answer whose stream is not open, or
closes, has no reader: it is not begun, or it ends after the piece that is being worked out.
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
from starlette.types import ASGIApp, Receive, Scope, Send

from lexloom.tasks.display.charts import Html

GRACE_SECONDS = 2.0  # between a request and its event stream: some round trips of a slow network
AT_ONCE = 2  # answers of one kind that are worked out at the same time
MOST_WAITING = 20  # readers of one kind
STREAM = re.compile(r"/queue/data/?$")
EVENT = re.compile(r"/call/(?:v2/)?[^/]+/([^/]+)/?$")  # an event is a session of its own


class Reader:
    """A session, and whether an event stream of it is open."""

    def __init__(self) -> None:
        self.streams = 0
        self.answers = 0
        self.there = asyncio.Event()
        self._absent_since = time.monotonic()

    def open(self) -> None:
        self.streams += 1
        self.there.set()

    def close(self) -> None:
        self.streams -= 1
        if not self.streams:
            self.there.clear()
            self._absent_since = time.monotonic()

    @property
    def gone(self) -> bool:
        """Whether no stream has been open for a while: a browser closes one before it opens the next."""
        return not self.streams and time.monotonic() - self._absent_since > GRACE_SECONDS

    async def arrived(self) -> bool:
        """Waits for a stream, but not for long; says whether there is one."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.there.wait(), GRACE_SECONDS)
        return self.there.is_set()


class Readers:
    """The readers of the page, by session."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader] = {}

    def of(self, session: str) -> Reader:
        return self._readers.setdefault(session, Reader())

    def forget(self, session: str) -> None:
        """Drops a session that has neither a stream nor an answer."""
        reader = self._readers.get(session)
        if reader is not None and not reader.streams and not reader.answers:
            del self._readers[session]


class WatchReaders:
    """ASGI middleware that notes which sessions have an event stream open."""

    def __init__(self, app: ASGIApp, readers: Readers) -> None:
        self._app, self._readers = app, readers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = session_of(scope)
        if session is None:
            await self._app(scope, receive, send)
            return
        reader = self._readers.of(session)
        reader.open()
        try:
            await self._app(scope, receive, send)
        finally:
            reader.close()
            self._readers.forget(session)


def session_of(scope: Scope) -> str | None:
    """The session whose event stream is asked for; None for all other requests."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return None
    if STREAM.search(scope["path"]):
        return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [])), None)
    event = EVENT.search(scope["path"])
    return event[1] if event else None


class BusyError(Exception):
    """There are too many readers; str() is a sentence for the one who came last."""


class Turns:
    """The line of one kind of answer."""

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self._at_once, self._most_waiting = at_once, most_waiting
        self._worked_out = 0
        self._waiting = deque[tuple[Reader, asyncio.Future[bool]]]()

    def take(self, reader: Reader) -> asyncio.Future[bool]:
        """A future that says True when it is the reader's turn, and False when the reader has gone before.

        Raises BusyError where too many wait.
        """
        waiting = sum(bool(other.streams) for other, _ in self._waiting)
        if self._worked_out >= self._at_once and waiting >= self._most_waiting:
            raise BusyError(
                f"the page is busy: {self._worked_out} requests are being answered and {waiting} wait; try"
                " again in a minute"
            )
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((reader, turn))
        self._call()
        return turn

    def end(self) -> None:
        """Ends a turn: the next one that waits has it."""
        self._worked_out -= 1
        self._call()

    def _call(self) -> None:
        still = deque[tuple[Reader, asyncio.Future[bool]]]()
        # readers without a stream are on their way back, or gone: the others go before them
        for reader, turn in sorted(self._waiting, key=lambda waiting: not waiting[0].streams):
            if turn.done():  # given up
                continue
            if reader.gone:
                turn.set_result(False)
            elif self._worked_out < self._at_once:
                self._worked_out += 1
                turn.set_result(True)
            else:
                still.append((reader, turn))
        self._waiting = still


Pieces = Generator[Html, None, None]
Answer = Callable[..., Pieces]


def in_turn(
    answer: Answer, readers: Readers, turns: Turns, problem: Callable[[str], Html]
) -> Callable[..., AsyncGenerator[Html, None]]:
    """The same answer for Gradio, worked out in threads, when it is its reader's turn and while it is there.

    `problem` makes an answer of a sentence.
    """

    async def asked(request: gr.Request, *given: Any) -> AsyncGenerator[Html, None]:
        session = request.session_hash or ""
        reader = readers.of(session)
        reader.answers += 1
        try:
            if not await reader.arrived():
                yield problem(f"nobody read this answer within {GRACE_SECONDS:g} seconds: ask again")
                return
            try:
                turn = turns.take(reader)
            except BusyError as error:
                yield problem(str(error))
                return
            async with aclosing(worked_out(answer(*given), reader, turn, turns)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            reader.answers -= 1
            readers.forget(session)

    # Gradio passes what is annotated as a request, and calls the inputs by the answer's own names
    first = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.Request)
    named = inspect.signature(answer)
    asked.__signature__ = named.replace(parameters=[first, *named.parameters.values()])  # type: ignore[attr-defined]
    return asked


async def worked_out(
    pieces: Pieces, reader: Reader, turn: asyncio.Future[bool], turns: Turns
) -> AsyncGenerator[Html, None]:
    """The pieces of an answer, one at a time, from its turn on and until its reader has gone."""
    try:
        its_turn = await turn
    except asyncio.CancelledError:
        if turn.done() and not turn.cancelled() and turn.result():
            turns.end()
        turn.cancel()
        raise
    if not its_turn:
        return
    step: asyncio.Future[Html | None] | None = None

    def end(_: object = None) -> None:
        with closing(pieces):
            turns.end()

    try:
        while not reader.gone:
            step = asyncio.ensure_future(anyio.to_thread.run_sync(next, pieces, None))
            piece = await asyncio.shield(step)
            if piece is None:
                return
            yield piece
    finally:
        # whoever cancels does not wait for the piece that is being worked out, but the next turn does
        if step is None or step.done():
            end()
        else:
            step.add_done_callback(end)
