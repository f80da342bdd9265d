"""`lexloom app` becomes the page's program, or says what is missing."""

import os
import sys

import pytest

from lexloom.deployments.cli.main import main


class BecameAnotherError(BaseException):
    """Stands for `exec`, after which this program is no more."""


def test_it_becomes_the_pages_program_with_its_flags_and_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", "overwritten")

    def become(path: str, arguments: list[str]) -> None:
        raise BecameAnotherError(path, arguments, os.environ["LEXLOOM_STORE"])

    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(BecameAnotherError) as became:
        main(["app", "--port", "0", "--store", "elsewhere"])
    assert became.value.args == (
        sys.executable,
        [sys.executable, "-P", "-m", "lexloom.deployments.web.app", "--host", "127.0.0.1", "--port", "0"],
        "elsewhere",
    )


def test_without_gradio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexloom.deployments.cli.servers.find_spec", lambda name: None)
    assert main(["app"]) == 1
    assert capsys.readouterr().err.strip() == "error: the web page needs Gradio: pip install 'lexloom[app]'"
