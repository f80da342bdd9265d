"""ASGI middleware that rejects cross-site requests.

Any page in the user's browser can send requests to a server on loopback. The same-origin policy only hides
the responses: simple requests, form posts, WebSocket connections and DNS rebinding still reach the server.
This middleware checks the headers that a page cannot forge: Host, Origin and Sec-Fetch-Site (Fetch standard;
W3C Fetch Metadata). It also requires JSON request bodies, which need a CORS preflight from another origin.
"""

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexloom.tasks.display.colours import report_style
from lexloom.tasks.display.templates import render

ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9a-f:.]+\]|[^\s:/?#@\[\]\\]+)(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE,
)
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
FROM_ANOTHER_SITE = "this request came from another site"


class Address(NamedTuple):
    """A host name or IP address, in lower case and without brackets, and a port where one is given."""

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `name`, `name:port`, `1.2.3.4:port`, `[::1]:port` or an origin, `https://name`.

        Raises:
            ValueError: `text` is not a valid host.
        """
        found = ADDRESS.fullmatch(text)
        if found is None or int(found["port"] or 0) >= 1 << 16:
            raise ValueError(f"{text!r} is not a valid host: use NAME, NAME:PORT or http://NAME:PORT")
        host = found["host"].strip("[]").lower().rstrip(".")
        port = int(found["port"]) if found["port"] else DEFAULT_PORTS.get((found["scheme"] or "").lower())
        return cls(str(ip_address(host)) if is_ip(host) else host, port)


def is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class SameOrigin:
    """Return 403 for cross-site requests and for unknown host names.

    Args:
        app: the application to protect.
        host: the address that the server is bound to. If that is all interfaces, any IP address is accepted
            as a host: DNS rebinding needs a host name.
        allow_hosts: further hosts, such as the public name of a reverse proxy: `name`, `name:port` or
            `https://name`. A name without a port matches the default ports and the server's port.
    """

    def __init__(self, app: ASGIApp, host: str, allow_hosts: Collection[str] = ()) -> None:
        self.app = app
        bound = Address.parse(f"[{host}]" if ":" in host else host).host
        self._any_ip = is_ip(bound) and ip_address(bound).is_unspecified
        names = {bound}
        if self._any_ip:
            names |= LOOPBACK_NAMES | {socket.gethostname().lower()}
        elif bound in LOOPBACK_NAMES or (is_ip(bound) and ip_address(bound).is_loopback):
            names |= LOOPBACK_NAMES
        self._names = frozenset(names)
        self._allowed = [Address.parse(each) for each in allow_hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        objection = self.objection(scope)
        if scope["type"] == "websocket":
            if objection is None:
                await self.app(scope, receive, send)
            else:
                await receive()  # websocket.connect
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": objection})
        elif objection is not None:
            await refusal(scope, objection)(scope, receive, send)
        else:
            await self.app(scope, receive, forbid_framing(send))

    def objection(self, scope: Scope) -> str | None:
        """Return the reason for rejecting the request, or None to accept it."""
        headers = Headers(scope=scope)
        local, port = scope.get("server") or (None, None)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        try:
            (host,) = map(Address.parse, hosts)
        except ValueError:
            return "the request must have exactly one valid Host header"
        if not self._serves(host, local, port):
            return f"unknown host {hosts[0]}: add it with --allow-host"
        if len(origins) > 1 or not all(self._is_own(origin, host, port) for origin in origins):
            return f"{FROM_ANOTHER_SITE} ({', '.join(origins)})"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return FROM_ANOTHER_SITE
        if has_body(headers) and media_type(headers) != "application/json":
            return "request bodies must be JSON: set Content-Type: application/json"
        return None

    def _serves(self, host: Address, local: str | None, port: int | None) -> bool:
        if (host.host in self._names or host.host == local) and (host.port or DEFAULT_PORTS["http"]) == port:
            return True
        if self._any_ip and is_ip(host.host):
            return True
        return any(
            allowed.host == host.host
            and host.port in ((allowed.port,) if allowed.port else (None, *DEFAULT_PORTS.values(), port))
            for allowed in self._allowed
        )

    def _is_own(self, origin: str, host: Address, port: int | None) -> bool:
        """Return whether the Origin matches the requested host or an allowed host."""
        default = DEFAULT_PORTS.get(origin.partition("://")[0])
        if default is None:
            return False  # `null`, an extension, a file
        try:
            address = Address.parse(origin)
        except ValueError:
            return False
        return address == (host.host, host.port or default) or any(
            address in ((allowed.host, allowed.port or default), (allowed.host, allowed.port or port))
            for allowed in self._allowed
        )


def has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers


def media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def forbid_framing(send: Send) -> Send:
    """Add headers that prevent other sites from framing the response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Frame-Options", "SAMEORIGIN")
            headers.setdefault("X-Content-Type-Options", "nosniff")
        await send(message)

    return send_with_headers


def refusal(scope: Scope, objection: str) -> Response:
    """Return a 403 response: HTML for top-level navigation, JSON otherwise.

    If the user followed a link from another site, the HTML page repeats the link, so that clicking it makes a
    same-origin request.
    """
    headers = Headers(scope=scope)
    if headers.get("sec-fetch-mode") != "navigate" or headers.get("sec-fetch-dest") != "document":
        return JSONResponse({"detail": objection, "exception_message": objection}, status_code=403)
    link = None
    if objection == FROM_ANOTHER_SITE and scope["method"] == "GET":
        address = "/" + quote(scope["path"].lstrip("/\\"))
        if scope["query_string"]:
            address += "?" + quote(scope["query_string"].decode("latin-1"), safe="=&%+,;:@/?")
        link = address
    message = f"{objection[0].upper()}{objection[1:]}."
    return message_page("blocked.html.j2", status=403, title="Request blocked", message=message, link=link)


def message_page(template: str, status: int = 200, **values: str | None) -> HTMLResponse:
    """Return an HTML page with one message; framing and caching are disabled."""
    return HTMLResponse(
        render(template, style=report_style(), **values),
        status_code=status,
        headers={
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        },
    )
