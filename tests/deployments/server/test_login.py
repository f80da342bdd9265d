"""One-time login links: creation requires the login, and a link works once within an hour."""

import json
import stat
from base64 import b64encode
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from lexloom.deployments.server import login
from lexloom.deployments.server.login import (
    LINK_PATH,
    LOGIN_PATH,
    LoginLinks,
    Session,
    new_login,
    publish,
    running_session,
)

LOGIN = "lexloom:secret"
ENCODED = b64encode(LOGIN.encode()).decode()
OWN = {"Authorization": f"Basic {ENCODED}"}


async def prefect(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Prefect's")(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    return TestClient(LoginLinks(prefect, LOGIN))


def test_a_link_works_once(client: TestClient) -> None:
    token = client.post(LINK_PATH, headers=OWN).json()["token"]
    first = client.post(LOGIN_PATH, json={"token": token})
    assert first.json() == {"login": ENCODED}
    assert first.headers["cache-control"] == "no-store"
    second = client.post(LOGIN_PATH, json={"token": token})
    assert second.status_code == 403
    assert ENCODED not in second.text


def test_a_link_expires(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    now = login.time.monotonic()
    late, later = (client.post(LINK_PATH, headers=OWN).json()["token"] for _ in range(2))
    monkeypatch.setattr(login.time, "monotonic", lambda: now + login.LINK_SECONDS - 1)
    assert client.post(LOGIN_PATH, json={"token": late}).status_code == 200
    monkeypatch.setattr(login.time, "monotonic", lambda: now + login.LINK_SECONDS + 60)
    assert client.post(LOGIN_PATH, json={"token": later}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic"},
        {"Authorization": "Basic bGV4bG9vbTp3cm9uZw=="},
        {"Authorization": f"Bearer {ENCODED}"},
    ],
)
def test_creating_a_link_requires_the_login(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post(LINK_PATH, headers=headers)
    assert answer.status_code == 401
    assert "token" not in answer.text


@pytest.mark.parametrize(
    "body", ["", "no JSON", "[]", "null", "{}", '{"token": 1}', '{"token": null}', '{"token": ["a"]}']
)
def test_a_malformed_token_is_a_bad_request(client: TestClient, body: str) -> None:
    answer = client.post(LOGIN_PATH, content=body)
    assert answer.status_code == 400
    assert "login" not in answer.json()


def test_wrong_and_oversized_tokens_are_rejected(client: TestClient) -> None:
    assert client.post(LOGIN_PATH, json={"token": "wrong"}).status_code == 403
    assert client.post(LOGIN_PATH, json={"token": "a" * 100_000}).status_code == 413


def test_the_login_page_has_no_secret_and_other_requests_reach_prefect(client: TestClient) -> None:
    page = client.get(LOGIN_PATH)
    assert page.status_code == 200
    assert ENCODED not in page.text
    assert page.headers["x-frame-options"] == "DENY"
    assert client.get("/api/health").text == "Prefect's"
    assert client.put(LOGIN_PATH).status_code == 405


def test_logins_are_random() -> None:
    assert len({new_login() for _ in range(100)}) == 100
    assert len(new_login()) > 32


# the session's file


def test_the_session_file_is_private_and_removed_on_exit(tmp_path: Path) -> None:
    session = Session(url="http://127.0.0.1:4200", login=LOGIN)
    (tmp_path / login.SESSION).write_text("left by one that was killed")
    (tmp_path / login.SESSION).chmod(0o644)
    with publish(session, tmp_path):
        file = tmp_path / login.SESSION
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {"url": session.url, "login": LOGIN}
        assert running_session(tmp_path) == session
    assert not file.exists()


@pytest.mark.parametrize("content", [None, "", "{}", '{"url": 1}'])
def test_a_link_without_a_session_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / login.SESSION).write_text(content)
    with pytest.raises(OSError, match=r"^no `lexloom ui` with a login is running for PREFECT_HOME="):
        running_session(tmp_path)


def test_a_killed_session_gives_no_link() -> None:
    with pytest.raises(OSError, match=r"could not get a login link from http://127\.0\.0\.1:9"):
        Session(url="http://127.0.0.1:9", login=LOGIN).new_link()
