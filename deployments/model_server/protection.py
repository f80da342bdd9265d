"""ASGI middleware of the model server: an API key, and a limit on the size of requests."""

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexloom.deployments.model_server.errors import error_response

MAX_BODY_BYTES = 1 << 20
OPEN_PATHS = ("/health",)


class RequireKey:
    """Return 401 for requests without `Authorization: Bearer KEY`, except for the health check."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self._expected):
                response = error_response(
                    401,
                    "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


class LimitBody:
    """Return 413 for bodies of more than MAX_BODY_BYTES, without reading the rest."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES:,} bytes: shorten it")
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)
