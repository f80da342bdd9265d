"""`lexloom app` replaces its process with the web page, or reports a missing package."""

import os
import sys

import pytest

from lexloom.deployments.cli.main import main


class BecameAnotherError(BaseException):
    """Raised instead of `exec`, which does not return."""


def test_the_process_is_replaced_by_the_web_page_with_its_flags_and_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_a_missing_gradio_is_reported_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lexloom.deployments.cli.servers.find_spec", lambda name: None)
    assert main(["app"]) == 1
    assert capsys.readouterr().err.strip() == "error: the web page needs Gradio: pip install 'lexloom[app]'"
