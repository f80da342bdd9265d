"""CPUs that a process may use."""

from pathlib import Path

import pytest

from lexloom.models.cpus import available_cpus, read_quota


@pytest.mark.parametrize(
    ("quota", "cpus"), [("200000 100000", 2), ("150000 100000", 2), ("max 100000", None), ("", None)]
)
def test_quota_of_version_2(tmp_path: Path, quota: str, cpus: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert read_quota(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("400000\n", 4), ("50000\n", 1), ("-1\n", None)])
def test_quota_of_version_1(tmp_path: Path, quota: str, cpus: int | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert read_quota(tmp_path) == cpus


def test_a_quota_lowers_the_number_of_cpus(tmp_path: Path) -> None:
    without = available_cpus(tmp_path)
    assert without >= 1
    (tmp_path / "cpu.max").write_text("1000 100000")
    assert available_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("999900000 100000")
    assert available_cpus(tmp_path) == without
