"""Placeholders of slow libraries: the help of a flow does not import them, and is the same as with them."""

import json
import subprocess
import sys

from lexloom.flows.command import flag_parameters
from lexloom.flows.placeholders import SLOW
from lexloom.flows.registry import flows

SCRIPT = f"""
import json, sys
from lexloom.flows.command import flag_parameters
from lexloom.flows.placeholders import placeholders
from lexloom.flows.registry import flows

built_in = {{name: entry for name, entry in flows().items() if entry.module.startswith("lexloom.")}}
with placeholders():
    configs = {{name: entry.config() for name, entry in built_in.items()}}
found = {{name: list(map(str, flag_parameters(config, True))) for name, config in configs.items()}}
print(json.dumps([found, [name for name in {SLOW} if hasattr(sys.modules.get(name), "__file__")]]))
"""


def run_script(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_flags_are_the_same_with_placeholders_of_slow_libraries() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True
    ).stdout
    found, real = json.loads(printed)
    assert real == []
    built_in = {name: entry for name, entry in flows().items() if entry.module.startswith("lexloom.")}
    assert found.keys() >= built_in.keys()
    for name, entry in built_in.items():
        assert found[name] == list(map(str, flag_parameters(entry.config(), True)))


def test_help_imports_no_slow_library() -> None:
    script = (
        "import sys; from lexloom.deployments.cli.main import main; status = main(['word2vec', '--help']);"
        f" print(status, [name for name in {SLOW} if hasattr(sys.modules.get(name), '__file__')])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert "--epochs" in printed
    assert printed.splitlines()[-1] == "0 []"
