"""torch.compile is used where it works, and skipped where it does not."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lexloom.models.compilation import compile_modules, without_compilation


def test_missing_compiler_gives_a_warning_and_uncompiled_modules(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*_: object) -> None:
            raise RuntimeError("No working C++ compiler found in CXX\nand many lines more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    layer = nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        assert not compile_modules([layer], "cpu")
    assert "training without it: No working C++ compiler found in CXX" in caplog.text
    assert "many lines" not in caplog.text
    assert layer(torch.zeros(1, 2)).shape == (1, 2)


def test_every_module_is_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # its own work is not ours to test
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert compile_modules(layers, "cpu")
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert list(layers[0].state_dict()) == ["weight", "bias"]


def test_compiled_module_can_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    stances: list[str] = []
    monkeypatch.setattr(
        torch.compiler, "set_stance", lambda stance: stances.append(stance) or (lambda call: call)
    )
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)
    assert without_compilation(len)("abc") == 3
    assert stances == ["force_eager"]


def test_compiler_is_not_imported_unless_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert without_compilation(len) is len
