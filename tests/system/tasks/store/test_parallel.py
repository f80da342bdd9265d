"""Pieces of a stage's work: the same bytes wherever they were worked on, and nothing left under way."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lexloom.tasks.frozen_features import FeaturesConfig, frozen_features
from lexloom.tasks.sources.backbone import BackboneConfig, locate_backbone
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.store.parallel import fan_out, use_cluster
from lexloom.tasks.store.shards import RowGroup
from lexloom.tasks.store.stage import Stage
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary
from tests.models.tiny import write_backbone
from tests.tasks.labelled import write_split
from tests.tasks.test_vocabulary import corpus_of

TEXTS = [f"the {n}th cat's hat {n % 7} ünïcödé 猫{'!' * (n % 3)}" for n in range(200)]


@pytest.fixture
def cluster(local_ray: list[str]) -> str:
    """The address by which this process uses the running Ray runtime."""
    return "auto"


def made(address: str, stage: Stage, *inputs: Any, config: Any, out: Path, **extra: Any) -> Any:
    """What the stage says and the digests of what it writes."""
    out.mkdir()
    with use_cluster(address):
        summary = stage.function(*inputs, config, out, **extra)
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return summary, {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).digest() for path in files}


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    return corpus_of(tmp_path / "corpus", TEXTS, row_group=7, shards=3)


def words_of(corpus: Artifact, folder: Path) -> Artifact:
    folder.mkdir()
    summary = vocabulary.function(corpus, VocabularyConfig(min_count=2), folder)
    return Artifact(stage="vocabulary", key="1" * 24, folder=folder, summary=summary)


@pytest.mark.parametrize("name", ["vocabulary", "tokens", "subwords", "features"])
def test_a_stage_writes_the_same_bytes_on_a_cluster_as_here(
    name: str, cluster: str, corpus: Artifact, store: Store, tmp_path: Path
) -> None:
    def run(address: str) -> tuple[Summary, dict[str, bytes]]:
        out = tmp_path / (address or "here")
        if name == "vocabulary":
            return made(address, vocabulary, corpus, config=VocabularyConfig(min_count=2), out=out)
        if name == "tokens":
            return made(address, tokens, corpus, words, config=TokensConfig(), out=out)
        if name == "subwords":
            config = SubwordsConfig(encoding="gpt2")
            return made(address, subwords, corpus, locate_encoding(config), config=config, out=out)
        scratch = tmp_path / f"{address or 'here'}-scratch"
        scratch.mkdir()
        config = FeaturesConfig(max_length=10)
        return made(address, frozen_features, reviews, backbone, config=config, out=out, scratch=scratch)

    words = words_of(corpus, tmp_path / "words")
    if name == "features":
        reviews = write_split(store)
        backbone = locate_backbone(BackboneConfig(backbone=str(write_backbone(tmp_path / "backbone"))))
    here = run("")
    assert len(here[1]) >= 1
    assert run(cluster) == here


def process_of(piece: int) -> int:
    return os.getpid()


def test_pieces_go_to_other_processes_only_on_a_cluster(cluster: str) -> None:
    with use_cluster(cluster), fan_out(process_of, range(5)) as found:
        assert os.getpid() not in set(found)
    with fan_out(process_of, range(5)) as found:
        assert set(found) == {os.getpid()}


def test_outcomes_come_in_order_and_few_pieces_are_ahead(cluster: str, tmp_path: Path) -> None:
    def work(piece: int) -> int:
        (tmp_path / str(piece)).touch()
        time.sleep(0.1 * (piece % 3))
        return piece**2

    with use_cluster(cluster), fan_out(work, range(30)) as found:
        assert next(found) == 0
        assert len(list(tmp_path.iterdir())) < 10
        assert list(found) == [piece**2 for piece in range(1, 30)]


def test_an_error_names_its_piece_and_is_the_functions_own(cluster: str, corpus: Artifact) -> None:
    damaged = RowGroup(corpus.files()[1], 2, "text")
    damaged.path.write_bytes(b"no Parquet")
    with (
        use_cluster(cluster),
        pytest.raises(OSError, match=r"the shard .*shard-00001.parquet can't be read") as raised,
        fan_out(lambda piece: piece.read(), [damaged]) as found,
    ):
        list(found)
    notes = "".join(raised.value.__notes__)
    assert f"in {damaged.path}, row group 2" in notes
    assert "on the node" in notes


def test_a_piece_whose_process_dies_is_worked_on_again(cluster: str, tmp_path: Path) -> None:
    def work(piece: int) -> int:
        if piece == 3:
            try:
                (tmp_path / "mark").touch(exist_ok=False)
            except FileExistsError:
                return piece
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with use_cluster(cluster), fan_out(work, range(6)) as found:
        assert list(found) == list(range(6))
    assert (tmp_path / "mark").exists()


def test_a_piece_that_kills_every_process_is_given_up(cluster: str, tmp_path: Path) -> None:
    def work(piece: str) -> None:
        with (tmp_path / "deaths").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        use_cluster(cluster),
        pytest.raises(RuntimeError, match="the process for shard-7 died 4 times on the cluster"),
        fan_out(work, ["shard-7"]) as found,
    ):
        list(found)
    assert (tmp_path / "deaths").read_text() == "xxxx"


def begin_and_sleep(folder: Path) -> Callable[[int], int]:
    def work(piece: int) -> int:
        if piece:
            (folder / f"begun-{os.getpid()}").touch()
            time.sleep(600)
        return piece

    return work


def test_who_leaves_early_leaves_nothing_under_way(cluster: str, tmp_path: Path) -> None:
    def leave() -> None:
        with use_cluster(cluster), fan_out(begin_and_sleep(tmp_path), range(9)) as found:
            assert next(found) == 0
            await_begun(tmp_path)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert_ended(tmp_path)


def test_a_signals_exception_passes_as_it_is_while_a_piece_is_awaited(cluster: str, tmp_path: Path) -> None:
    def cancel(*_: object) -> None:
        raise CancelError

    def be_cancelled() -> None:
        with use_cluster(cluster), fan_out(begin_and_sleep(tmp_path), [0, 1]) as found:
            next(found)
            await_begun(tmp_path)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            next(found)

    before = signal.signal(signal.SIGALRM, cancel)
    try:
        with pytest.raises(CancelError):
            be_cancelled()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert_ended(tmp_path)


def begun_in(folder: Path) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob("begun-*")]


def await_begun(folder: Path) -> None:
    while not begun_in(folder):
        time.sleep(0.05)


def assert_ended(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in begun_in(folder)):
        assert time.monotonic() < deadline, "a piece is still under way"
        time.sleep(0.05)


class CancelError(BaseException):
    pass
