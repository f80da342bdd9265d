"""The GPU's benchmark goes through all of its parts without a GPU, so that it is ready where there is one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_dry_run_reaches_its_table_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "word2vec_gpu.py", "--dry", "--out", tmp_path / "out.json"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(default)" in done.stdout
    assert not list(tmp_path.iterdir())
