"""OpenMP's wait policy is set before torch is loaded, which reads it once."""

import os
import subprocess
import sys

import pytest

IMPORTING = """
import os, sys
from importlib import import_module

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
import_module(sys.argv[1])
"""


@pytest.mark.parametrize(
    "module", ["lexloom.training.loop", "lexloom.tasks.train.run", "lexloom.deployments.cli.main"]
)
@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_threads_wait_passively_by_default(module: str, given: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    command = [sys.executable, "-c", f"{IMPORTING}\nimport torch", module]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split()[:1] == [found]
