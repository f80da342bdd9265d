"""Login for `lexloom ui`: random credentials at each start, and one-time login links.

A link carries a token in its URL fragment, which browsers do not send to the server. The login page exchanges
the token for the credentials and stores them where the Prefect UI reads them.
"""

import base64
import hmac
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lexloom.flows.local_server.same_origin import message_page

LINK_SECONDS = 3600
USER = "lexloom"
LOGIN_PATH, LINK_PATH = "/lexloom/login", "/lexloom/link"
SESSION = "lexloom-ui.json"
MAX_BODY_BYTES = 4096


class LoginLinks:
    """ASGI middleware that issues one-time login links to authenticated clients.

    It exchanges each link's token for the login, once.

    Args:
        app: Prefect's application, which asks for the login as HTTP Basic authentication.
        login: `name:password`.
    """

    def __init__(self, app: ASGIApp, login: str) -> None:
        self.app = app
        self._login = base64.b64encode(login.encode())
        self._deadlines: dict[bytes, float] = {}  # of unused links, by token digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (LOGIN_PATH, LINK_PATH):
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        if request.method not in ("GET", "POST"):
            answer: Response = JSONResponse({"detail": "Method Not Allowed"}, status_code=405)
        elif scope["path"] == LINK_PATH:
            answer = self._make_link(request)
        elif request.method == "GET":
            answer = message_page("login.html.j2", title="Log in to Prefect", message="Logging in…")
        else:
            answer = await self._exchange(request)
        answer.headers["Cache-Control"] = "no-store"
        await answer(scope, receive, send)

    def _make_link(self, request: Request) -> Response:
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or not hmac.compare_digest(credentials.encode(), self._login):
            return JSONResponse({"detail": "Unauthorized"}, status_code=401)
        token = secrets.token_urlsafe(32)
        now = time.monotonic()
        self._deadlines = {each: deadline for each, deadline in self._deadlines.items() if deadline > now}
        self._deadlines[digest(token)] = now + LINK_SECONDS
        return JSONResponse({"token": token})

    async def _exchange(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return JSONResponse({"detail": "Request Entity Too Large"}, status_code=413)
        try:
            token = json.loads(body)["token"]
            deadline = self._deadlines.pop(digest(token), 0.0)
        except (ValueError, LookupError, TypeError, AttributeError):
            return JSONResponse({"detail": 'the body must be {"token": "..."}'}, status_code=400)
        if deadline < time.monotonic():
            return JSONResponse({"detail": "this link has already been used or has expired"}, status_code=403)
        return JSONResponse({"login": self._login.decode()})


def digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def new_login() -> str:
    """A random `name:password`."""
    return f"{USER}:{secrets.token_urlsafe(24)}"


# the session file, read by `lexloom ui --link`


class Session(BaseModel):
    """URL and login of a running `lexloom ui`, stored in a file that only its user can read."""

    url: str
    login: str

    def new_link(self) -> str:
        """Return a one-time login link that expires after an hour.

        Raises:
            OSError: the server does not answer, or refuses the login.
        """
        headers = {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"}
        try:
            answer = httpx.post(f"{self.url}{LINK_PATH}", headers=headers, trust_env=False, timeout=10)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(f"could not get a login link from {self.url}: {error}") from error
        return f"{self.url}{LOGIN_PATH}#{answer.json()['token']}"


@contextmanager
def publish(session: Session, home: Path) -> Iterator[None]:
    """Keep the session file in place while the body runs."""
    file = home / SESSION
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(session.model_dump_json())
        yield
    finally:
        file.unlink(missing_ok=True)


def running_session(home: Path) -> Session:
    """Return the session of the `lexloom ui` that uses this PREFECT_HOME.

    Raises:
        OSError: none is running, or it runs without a login.
    """
    try:
        return Session.model_validate_json((home / SESSION).read_text())
    except (FileNotFoundError, ValidationError):
        raise OSError(f"no `lexloom ui` with a login is running for PREFECT_HOME={home}") from None
