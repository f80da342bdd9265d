"""A queue of bounded length, from which requests use the model one at a time.

It is not the web page's queue, because that queue's requests belong to Gradio sessions, which may reconnect.
Here, a request ends with its connection.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, closing
from typing import Any

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lexloom.deployments.model_server.errors import error_body, error_response
from lexloom.models.word2vec.vectors import UnknownWordError

MAX_WAITING = 32
SEND_SECONDS = 30.0  # a client that does not read its stream for longer is disconnected
RETRY_SECONDS = 5
EVENT_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
DONE = b"data: [DONE]\n\n"
END: Any = object()
logger = logging.getLogger("lexloom")

Steps = Generator[dict[str, Any] | None, None, None]
"""The steps of a request's work, each run in a thread. A step yields None or an object to send."""


class BusyError(Exception):
    """Too many requests are waiting."""


class Turns:
    """Admits one request at a time, in order of arrival."""

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._lock = asyncio.Lock()
        self._inside = 0  # the running request and the waiting ones

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of this request, which lasts until the end of the block.

        Raises:
            BusyError: too many requests are already waiting.
        """
        if self._inside > self._max_waiting:
            raise BusyError
        self._inside += 1
        try:
            async with self._lock:
                yield
        finally:
            self._inside -= 1


class InTurn(Response):
    """A response that does its work when it is the request's turn, and stops if the client disconnects.

    Args:
        turns: the queue.
        work: returns the steps. Their last object is the JSON response; if `stream` is set, each object is
            sent as a server-sent event as soon as it is known. ValueError and UnknownWordError are the
            client's errors.
    """

    def __init__(self, turns: Turns, work: Callable[[], Steps], *, stream: bool = False) -> None:
        super().__init__()
        self._turns = turns
        self._work = work
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def stop_at_disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(stop_at_disconnect)
            try:
                async with self._turns.turn():
                    await self._run(scope, receive, send)
            except BusyError:
                await busy()(scope, receive, send)
            except TimeoutError:
                logger.warning("disconnected a client that did not read its stream for %g s", SEND_SECONDS)
            group.cancel_scope.cancel()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            with closing(self._work()) as steps:
                result: dict[str, Any] | None = None
                # a step that runs in a thread is not cancelled: the turn ends after it
                while (step := await anyio.to_thread.run_sync(next, steps, END)) is not END:
                    if step is None:
                        continue
                    result = step
                    if self._stream:
                        await send_events(send, event(step), first=not begun)
                        begun = True
            if self._stream:
                await send_events(send, DONE, first=not begun, last=True)
            else:
                await JSONResponse(result)(scope, receive, send)
        except TimeoutError:
            raise
        except Exception as error:
            status, body = describe_failure(error)
            if begun:
                await send_events(send, event(body), last=True)
            else:
                await JSONResponse(body, status)(scope, receive, send)


def describe_failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of the response to a failed request."""
    if isinstance(error, ValueError | UnknownWordError):
        return 400, error_body(str(error))
    logger.error("a request to the model failed", exc_info=error)
    message = f"internal error ({type(error).__name__}): see the server's terminal for details"
    return 500, error_body(message, "server_error")


def busy() -> Response:
    return error_response(
        503,
        "the model is busy, and too many requests are waiting: try again later",
        "server_error",
        code="busy",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


# server-sent events


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def send_events(send: Send, body: bytes, *, first: bool = False, last: bool = False) -> None:
    """Send events, with the headers if they are the first.

    Raises:
        TimeoutError: the client does not read them.
    """
    with anyio.fail_after(SEND_SECONDS):
        if first:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": not last})
