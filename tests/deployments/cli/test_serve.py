"""`lexloom serve`: which model is served, to whom, and a request over a socket."""

import json
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import uvicorn

from lexloom.deployments.cli import serve as module
from lexloom.deployments.cli.main import main
from lexloom.deployments.cli.serve import load_served, read_key
from lexloom.tasks.store.artifacts import Store
from tests.deployments.cli.test_main import complaint
from tests.deployments.store import write_transformer, write_words


def test_a_model_outside_the_store_is_served_by_its_folders_name(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_transformer(tmp_path / "mine")
    served = load_served("./mine", "cpu")
    assert (served.name, served.capability) == ("mine", "generate")
    assert served.aliases == {"mine", "./mine"}


def test_a_folder_of_no_known_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words").mkdir()
    write_words(tmp_path / "words")
    assert "words does not name a known kind of model (" in complaint(capsys, "serve", "words", "--port", "0")
    assert "nothing is neither a model folder nor" in complaint(capsys, "serve", "nothing", "--port", "0")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_this_machine_needs_no_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEXLOOM_API_KEY", raising=False)
    assert read_key(host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEXLOOM_API_KEY", raising=False)
    with pytest.raises(ValueError, match=f"with --host {host}, other machines can use the model: set"):
        read_key(host)
    monkeypatch.setenv("LEXLOOM_API_KEY", "sk-1")
    assert read_key(host) == "sk-1"


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ключ"])
def test_a_key_that_no_header_can_have_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXLOOM_API_KEY", key)
    with pytest.raises(ValueError, match=r"^LEXLOOM_API_KEY is set, but it is empty or has characters other"):
        read_key("127.0.0.1")


def test_a_request_over_a_socket(
    filled: Store, names: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))
    monkeypatch.delenv("LEXLOOM_API_KEY", raising=False)
    answers: list[bytes] = []

    class Server(uvicorn.Server):
        """Stops after one streamed response."""

        async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
            await super().startup(sockets)  # type: ignore[arg-type]
            threading.Thread(target=self.ask, args=(sockets[0].getsockname()[1],)).start()  # type: ignore

        def ask(self, port: int) -> None:
            body = {"model": names["transformer"], "prompt": "the", "max_tokens": 4, "stream": True}
            request = Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urlopen(request) as response:
                answers.append(response.read())
            self.should_exit = True

    monkeypatch.setattr(module.uvicorn, "Server", Server)
    assert main(["serve", "t1", "--port", "0", "--device", "cpu"]) == 0
    assert answers[0].endswith(b"data: [DONE]\n\n")
    assert capsys.readouterr().out.startswith("serving t1 at http://127.0.0.1:")


def test_a_gpu_that_is_missing_is_one_sentence(
    filled: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))
    monkeypatch.setattr(module, "count_gpus", lambda: 0)
    said = complaint(capsys, "serve", "t1", "--port", "0", "--device", "cuda")
    assert said == "error: --device is cuda, but torch finds no GPU on this machine: use auto or cpu"


def test_a_port_in_use_is_one_sentence(
    filled: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lexloom.deployments.server.sockets import listen

    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in complaint(capsys, "serve", "t1", "--port", port)
