"""Bad input ends in a one-line error with status 1, and leaves no partial artifact in the store."""

import gzip
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store
from tests.needs import missing

pytestmark = pytest.mark.usefixtures("prefect_server")
PLENTY = "the cat sat on the mat and the dog sat on the rug\n" * 50


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def write_text(folder: Path) -> str:
    (folder / "text.txt").write_text(PLENTY)
    return "text.txt"


def write_parquet(folder: Path, values: pa.Array) -> str:
    pq.write_table(pa.table({"text": values}), folder / "text.parquet")
    return "text.parquet"


def broken_parquet(folder: Path) -> str:
    name = write_parquet(folder, pa.array(PLENTY.splitlines()))
    truncated(folder / name)
    return name


def broken_gzip(folder: Path) -> str:
    (folder / "text.txt.gz").write_bytes(gzip.compress(PLENTY.encode()))
    truncated(folder / "text.txt.gz")
    return "text.txt.gz"


def write_bytes(content: bytes) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        (folder / "text.txt").write_bytes(content)
        return "text.txt"

    return write


@pytest.mark.parametrize(
    ("source", "flags", "complaint"),
    [
        (lambda _: "nowhere.txt", [], "nowhere.txt' does not exist"),
        (lambda _: "*.jsonl", [], "*.jsonl"),
        (write_text, ["--source", "text.doc"], "text.doc"),
        (lambda folder: write_parquet(folder, pa.array(["a"])), ["--text-column", "body"], "'body'"),
        (lambda folder: write_parquet(folder, pa.array([1, 2])), [], "int64"),
        (lambda folder: write_parquet(folder, pa.array([None, None], pa.string())), [], "2 null"),
        (write_bytes(b""), [], "no text remains in text.txt"),
        (write_bytes(b"1 2 3\n4 5 6\n"), [], "no text remains in text.txt"),
        (write_bytes(b"fine\ncaf\xe9\n"), [], "text.txt, line 2"),
        (broken_parquet, [], "text.parquet"),
        (broken_gzip, [], "text.txt.gz"),
        (write_text, ["--min-count", "1000"], "lower --min-count or use more text"),
        (write_bytes(b"word\n" * 9), ["--subsample", "0"], "no pairs can be generated from 9 documents"),
        (write_text, ["--learning-rate", "0.00001"], "--min-learning-rate 0.0001 is above --learning-rate"),
        (write_text, ["--similarity", "nothing.tsv"], "the similarity file nothing.tsv does not exist"),
        (lambda _: "hf:", [], "hf:"),
    ],
)
def test_bad_input_is_a_one_line_error_and_leaves_no_partial_artifact(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    store: Store,
    source: Callable[[Path], str],
    flags: list[str],
    complaint: str,
) -> None:
    name = source(tmp_path)
    fast = ["--runner", "local", "--workers", "1", "--dim", "8", "--epochs", "1", "--subsample", "0"]
    assert main(["word2vec", "--source", name, *fast, *flags]) == 1
    said = capsys.readouterr().err.splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint in errors[0]
    assert said[-1] == errors[0]
    assert not any("Traceback" in line for line in said)
    assert not list(store.root.glob(".building/*"))
    for manifest in store.manifests():
        assert store.find_damage(manifest.stage, manifest.key, "full") is None


def test_a_diverging_run_names_its_step_and_keeps_finished_stages(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lexloom.models.word2vec.trainable.Word2Vec.train_step", lambda *_, **__: float("nan")
    )
    command = ["word2vec", "--source", write_text(tmp_path), "--subsample", "0", "--dim", "8"]
    assert main([*command, "--runner", "local", "--workers", "1"]) == 1
    assert "error: the loss is nan at step 1" in capsys.readouterr().err
    assert {manifest.stage for manifest in store.manifests()} == {
        *("corpus", "vocabulary", "tokens", "pairs", "negative_sampling")
    }


def test_an_error_names_a_store_that_is_not_writable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEXLOOM_STORE", str(tmp_path / "file" / "store"))
    assert main(["word2vec", "--source", write_text(tmp_path), "--runner", "local", "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "the store" in said
    assert "is not writable" in said


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB; only root can create it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    if os.geteuid():
        pytest.skip("only root may mount a disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]).returncode:
        missing("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_artifact(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, small_volume: Path
) -> None:
    (tmp_path / "text.txt").write_bytes(os.urandom(3 << 20).hex().encode())
    flags = [
        "--store",
        str(small_volume / "store"),
        "--runner",
        "local",
        "--workers",
        "1",
        "--no-strip-digits",
    ]
    assert main(["word2vec", "--source", "text.txt", "--min-count", "1", *flags]) == 1
    assert "no space is left for stage corpus" in capfd.readouterr().err
    assert not list((small_volume / "store").glob(".building/*"))
    assert not list((small_volume / "store").glob("corpus/*"))
