"""The GPU's benchmark goes through all of its parts without a GPU, so that it is ready where there is one."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[3]


def test_the_dry_run_reaches_its_table_and_writes_nothing(tmp_path):
    script, vectors = ROOT / "benchmarks" / "word2vec_gpu.py", tmp_path / "vectors"
    done = subprocess.run(
        [sys.executable, script, "--dry", "--out", tmp_path / "out.json", "--vectors", vectors],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(default)" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]
    kept = {path.name: np.load(path) for path in vectors.iterdir()}
    assert {name: matrix.shape for name, matrix in kept.items()} == {
        "16-cpu-1.npy": (40, 16),
        "16-gpu-1.npy": (40, 16),
    }
    assert not np.array_equal(*kept.values())
