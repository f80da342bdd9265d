"""Tests of `SameOrigin`: which requests reach the application, by headers that a page cannot forge."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from lexloom.flows.local_server.same_origin import Address, SameOrigin

Headers = dict[str, str]
LOCAL, PORT = "127.0.0.1", 4200


async def answer(request: Request) -> PlainTextResponse:
    await request.body()
    return PlainTextResponse("served")


async def converse(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


APP = Starlette(
    routes=[
        Route("/{path:path}", answer, methods=["GET", "POST", "DELETE", "OPTIONS"]),
        WebSocketRoute("/{path:path}", converse),
    ]
)


def ask(
    guard: SameOrigin,
    headers: Headers | Sequence[tuple[str, str]],
    kind: str = "http",
    method: str = "GET",
    path: str = "/api/version",
    query: str = "",
    local: str = LOCAL,
) -> list[Message]:
    """Return the messages that answer one request."""
    pairs = headers.items() if isinstance(headers, dict) else headers
    scope: dict[str, Any] = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "server": (local, PORT),
    }
    sent: list[Message] = []

    async def receive() -> Message:
        if kind == "websocket":
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def status(guard: SameOrigin, headers: Headers | Sequence[tuple[str, str]], **more: Any) -> int:
    return ask(guard, headers, **more)[0]["status"]


def text(messages: list[Message]) -> str:
    return b"".join(message.get("body", b"") for message in messages).decode()


GUARD = SameOrigin(APP, LOCAL)
HOST = {"Host": "127.0.0.1:4200"}
JSON = {"Content-Type": "application/json", "Content-Length": "2"}

# what is served


@pytest.mark.parametrize(
    "headers",
    [
        HOST,  # a program
        {"Host": "localhost:4200"},
        {"Host": "LOCALHOST:4200"},
        {"Host": "[::1]:4200"},
        {**HOST, "Origin": "http://127.0.0.1:4200", "Sec-Fetch-Site": "same-origin"},
        {**HOST, "Sec-Fetch-Site": "none"},  # typed by the user
    ],
)
def test_the_pages_own_requests_and_those_of_programs_are_served(headers: Headers) -> None:
    assert status(GUARD, headers) == 200
    assert status(GUARD, {**headers, **JSON}, method="POST") == 200
    assert ask(GUARD, headers, kind="websocket")[0]["type"] == "websocket.accept"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_request_without_a_body_needs_no_content_type(method: str) -> None:
    assert status(GUARD, HOST, method=method) == 200
    assert status(GUARD, {**HOST, "Content-Length": "0"}, method=method) == 200


# what is refused


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://other.example"},
        {"Origin": "http://127.0.0.1:4201"},  # another program of this machine
        {"Origin": "http://localhost:4200"},  # another origin than 127.0.0.1, for a browser
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://127.0.0.1:4200.other.example"},
        {"Origin": "http://127.0.0.1:4200@other.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "file://"},
        {"Origin": "chrome-extension://abcdef"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:4200"},
    ],
)
def test_other_origins_are_rejected(headers: Headers) -> None:
    headers = {**HOST, **headers}
    assert status(GUARD, headers) == 403
    assert status(GUARD, {**headers, **JSON}, method="POST") == 403
    assert status(GUARD, headers, method="OPTIONS") == 403
    (closed,) = ask(GUARD, headers, kind="websocket")
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)


@pytest.mark.parametrize(
    "host",
    [
        "other.example:4200",
        "127.0.0.1.other.example:4200",
        "127.0.0.1:4201",
        "127.0.0.1",
        "192.168.0.7:4200",
        "user@127.0.0.1:4200",
        "127.0.0.1:4200, other.example",
        "127.0.0.1:99999999",
        "",
    ],
)
def test_other_host_names_are_rejected(host: str) -> None:
    assert status(GUARD, {"Host": host}) == 403
    assert status(GUARD, {"Host": host, "Origin": f"http://{host}"}) == 403
    assert ask(GUARD, {"Host": host}, kind="websocket")[0]["type"] == "websocket.close"


def test_missing_or_duplicate_headers_are_rejected() -> None:
    host = ("Host", "127.0.0.1:4200")
    assert status(GUARD, []) == 403
    assert status(GUARD, [host, ("Host", "other.example")]) == 403
    own, other = ("Origin", "http://127.0.0.1:4200"), ("Origin", "http://other.example")
    assert status(GUARD, [host, own, other]) == 403


@pytest.mark.parametrize(
    "declared",
    [
        {"Content-Length": "2"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "2", "Content-Type": "text/plain"},
        {"Content-Length": "2", "Content-Type": "text/plain; application/json"},
        {"Content-Length": "2", "Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Length": "2", "Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Length": "2", "Content-Type": ""},
    ],
)
def test_bodies_not_declared_as_json_are_rejected(declared: Headers) -> None:
    for method in ("POST", "DELETE"):
        answered = ask(GUARD, {**HOST, **declared}, method=method)
        assert answered[0]["status"] == 403
        assert "set Content-Type: application/json" in text(answered)


def test_json_may_name_its_character_set() -> None:
    declared = {"Content-Length": "2", "Content-Type": "Application/JSON; charset=utf-8"}
    assert status(GUARD, {**HOST, **declared}, method="POST") == 200


# other addresses


def test_a_server_for_everyone_is_reached_by_any_ip_address_but_not_by_any_name() -> None:
    guard = SameOrigin(APP, "0.0.0.0")
    for host in ("192.168.0.7:4200", "10.1.2.3:8080", "[2001:db8::1]:4200", "localhost:4200"):
        assert status(guard, {"Host": host, "Origin": f"http://{host}"}) == 200
    for host in ("other.example:4200", "other.example"):
        assert status(guard, {"Host": host}) == 403
    assert status(guard, {"Host": "192.168.0.7:4200", "Origin": "http://192.168.0.8:4200"}) == 403


def test_a_server_at_a_name_is_reached_by_its_address_too() -> None:
    guard = SameOrigin(APP, "books.example")
    for host in ("books.example:4200", "192.168.0.7:4200"):
        assert status(guard, {"Host": host}, local="192.168.0.7") == 200
    assert status(guard, {"Host": "192.168.0.8:4200"}, local="192.168.0.7") == 403


@pytest.mark.parametrize(
    ("allowed", "host", "origin", "expected"),
    [
        ("books.example", "books.example", "https://books.example", 200),
        ("books.example", "books.example:4200", "http://books.example:4200", 200),
        ("books.example", "127.0.0.1:4200", "https://books.example", 200),  # a proxy that rewrites Host
        ("books.example:8443", "books.example:8443", "https://books.example:8443", 200),
        ("https://books.example", "books.example:443", "https://books.example", 200),
        ("books.example:8443", "books.example", "https://books.example", 403),
        ("books.example", "books.example:8443", "https://books.example:8443", 403),
        ("books.example", "more.books.example", "https://more.books.example", 403),
        ("books.example", "127.0.0.1:4200", "https://books.example:8443", 403),
    ],
)
def test_a_proxys_name_is_served_if_it_is_allowed(
    allowed: str, host: str, origin: str, expected: int
) -> None:
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert status(SameOrigin(APP, LOCAL, [allowed]), headers) == expected
    assert status(GUARD, headers) == 403


@pytest.mark.parametrize("name", ["", "a b", "name:port", "ftp://books.example", "name/path", "name:70000"])
def test_an_invalid_allowed_host_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid host: use NAME, NAME:PORT or http://NAME:PORT"):
        Address.parse(name)


# answers


def test_a_rejection_has_a_reason() -> None:
    answered = ask(GUARD, {"Host": "books.example"})
    assert "unknown host books.example: add it with --allow-host" in text(answered)
    answered = ask(GUARD, {**HOST, "Origin": "http://other.example"})
    assert "this request came from another site (http://other.example)" in text(answered)


TAB = {**HOST, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


def test_a_link_on_another_site_leads_to_a_page_with_the_same_link() -> None:
    answered = ask(GUARD, TAB, path="/runs/flow-run/1", query="tab=Logs&x=1")
    assert answered[0]["status"] == 403
    assert '<a href="/runs/flow-run/1?tab=Logs&amp;x=1">' in text(answered)
    headers = dict(answered[0]["headers"])
    assert headers[b"x-frame-options"] == b"DENY", "or another site could make the user click it"


@pytest.mark.parametrize("path", ["//other.example/x", "/\\other.example/x", '/"><script>alert(1)</script>'])
def test_that_link_stays_on_this_site(path: str) -> None:
    said = text(ask(GUARD, TAB, path=path, query='"><script>'))
    assert "<script>" not in said
    assert '<a href="//' not in said
    assert '<a href="/\\' not in said


@pytest.mark.parametrize(
    "change", [{"Sec-Fetch-Dest": "iframe"}, {"Sec-Fetch-Mode": "cors"}, {"Origin": "http://other.example"}]
)
def test_frames_and_scripts_of_another_site_get_no_link(change: Headers) -> None:
    assert "href" not in text(ask(GUARD, {**TAB, **change}))


def test_no_other_site_can_frame_a_page() -> None:
    headers = dict(ask(GUARD, HOST)[0]["headers"])
    assert headers[b"x-frame-options"] == b"SAMEORIGIN"
    assert headers[b"x-content-type-options"] == b"nosniff"
