"""A stage's pieces, worked on in this process."""

import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest

from lexloom.tasks.store import parallel as fan_out_module
from lexloom.tasks.store.parallel import fan_out, use_cluster
from lexloom.tasks.store.shards import RowGroup


def process_of(piece: int) -> int:
    return os.getpid()


def test_pieces_stay_in_this_process_without_a_cluster() -> None:
    with fan_out(process_of, range(5)) as found:
        assert set(found) == {os.getpid()}
    with use_cluster(""), fan_out(process_of, range(5), concurrent=False) as found:
        assert set(found) == {os.getpid()}


def test_an_error_names_its_piece_and_is_the_functions_own(tmp_path: Path) -> None:
    damaged = RowGroup(tmp_path / "shard-00001.parquet", 2, "text")
    damaged.path.write_bytes(b"no Parquet")
    with (
        use_cluster(""),
        pytest.raises(OSError, match=r"the shard .*shard-00001.parquet can't be read") as raised,
        fan_out(lambda piece: piece.read(), [damaged]) as found,
    ):
        list(found)
    notes = "".join(raised.value.__notes__)
    assert f"in {damaged.path}, row group 2" in notes
    assert "on the node" not in notes


class CancelError(BaseException):
    pass


def test_a_cancellation_during_the_import_of_ray_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless_import(name: str) -> ModuleType:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
        except BaseException:
            pass
        return ModuleType(name)

    def cancel(*_: object) -> None:
        raise CancelError

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        monkeypatch.setattr(fan_out_module, "import_module", careless_import)
        with pytest.raises(CancelError):
            fan_out_module.import_in_thread("lexloom.training.ray.trainer")
    finally:
        signal.signal(signal.SIGUSR1, before)
