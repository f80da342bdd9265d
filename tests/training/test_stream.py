"""The stream: one order for any number of workers, each example once, an exact position."""

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexloom.training import stream as stream_module
from lexloom.training.stream import ShardStream


def write_shards(folder: Path, sizes: list[int], rows_per_group: int = 10) -> tuple[Path, ...]:
    """Write shards of the given sizes whose `number` column counts through all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    paths = []
    for index, size in enumerate(sizes):
        numbers = pa.array(np.arange(start, start + size, dtype=np.int32))
        path = folder / f"shard-{index:05d}.parquet"
        pq.write_table(pa.table({"number": numbers, "half": numbers}), path, row_group_size=rows_per_group)
        paths.append(path)
        start += size
    return tuple(paths)


def stream(files: tuple[Path, ...], rank: int = 0, world_size: int = 1, **options: int) -> ShardStream:
    settings = {"batch_size": 16, "lanes": 4, "seed": 3, **options}
    return ShardStream(files, ["number"], rank=rank, world_size=world_size, **settings)


def batches(stream: ShardStream, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [batch["number"].tolist() for batch in stream.read(stream.epoch(epoch), start)]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0),
    world_size=st.integers(1, 4),
    batch_size=st.integers(4, 40),
    shuffle_buffer_bytes=st.sampled_from([0, 4, 40, 400]),
)
def test_workers_share_the_batches_of_one_worker(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    world_size: int,
    batch_size: int,
    shuffle_buffer_bytes: int,
) -> None:
    files = write_shards(tmp_path_factory.mktemp("shards"), sizes)
    options = {"batch_size": batch_size, "shuffle_buffer_bytes": shuffle_buffer_bytes}
    alone = [sorted(batch) for batch in batches(stream(files, **options))]
    shares = [batches(stream(files, rank, world_size, **options)) for rank in range(world_size)]
    assert [sorted(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)] == alone
    assert sorted(chain.from_iterable(alone)) == list(range(sum(sizes)))
    assert all(len(batch) == batch_size for batch in alone[:-1])
    epoch = stream(files, batch_size=batch_size).epoch(0)
    assert epoch.steps == len(alone)
    done = np.cumsum([0, *map(len, alone)])
    assert [epoch.examples_until(step) for step in range(len(alone) + 1)] == done.tolist()


@pytest.mark.parametrize("batch_size", [64, 100])
def test_any_number_of_workers_shares_64_lanes(tmp_path: Path, batch_size: int) -> None:
    files = write_shards(tmp_path, [1500, 30, 477], rows_per_group=100)
    options = {"batch_size": batch_size, "lanes": 64, "shuffle_buffer_bytes": 64 * 4 * 8}
    alone = batches(stream(files, **options), epoch=1)
    full, rest = divmod(2007, batch_size)
    assert [len(batch) for batch in alone] == [*[batch_size] * full, rest]
    assert sorted(chain.from_iterable(alone)) == list(range(2007))
    for world_size in (3, 7, 48, 64):
        shares = [batches(stream(files, rank, world_size, **options), epoch=1) for rank in range(world_size)]
        together = [sorted(chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
        assert together == [sorted(batch) for batch in alone]
        rows = [[len(batch) for batch in share[:-1]] for share in shares]
        assert np.min(rows) >= batch_size // 64 * (64 // world_size)
        assert np.max(rows) <= -(-batch_size // 64) * -(-64 // world_size)


def test_fewer_rows_than_lanes_are_shared(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [5])
    shares = [batches(stream(files, rank, 8, batch_size=8, lanes=8)) for rank in range(8)]
    assert sorted(map(len, chain.from_iterable(shares))) == [0, 0, 0, 1, 1, 1, 1, 1]
    assert sorted(chain(*chain(*shares))) == list(range(5))


@pytest.mark.parametrize("bytes_at_once", [1, 4 * 13 * 5, 1 << 20])
@pytest.mark.parametrize("start", [0, 7])
def test_examples_are_round_robin_over_the_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_at_once: int, start: int
) -> None:
    """Whether batches are gathered one by one or together: 13 numbers, of one lane after the other."""
    monkeypatch.setattr(stream_module, "BYTES_AT_ONCE", bytes_at_once)
    plain = stream(write_shards(tmp_path, [170, 31]), batch_size=13)
    lanes = [
        [
            10 * block.row_group + block.start + row + 170 * (block.first_row >= 170)
            for block in lane
            for row in range(block.rows)
        ]
        for lane in plain.epoch(0).lanes
    ]
    assert [len(lane) for lane in lanes] == [51, 50, 50, 50]
    places = [range(13 * batch, min(201, 13 * batch + 13)) for batch in range(start, 16)]
    expected = [
        [lanes[lane][place // 4] for lane in range(4) for place in batch if place % 4 == lane]
        for batch in places
    ]
    assert batches(plain, start=start) == expected


def test_order_depends_on_epoch_and_seed(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [200, 100])
    orders = [batches(stream(files), 0), batches(stream(files), 1), batches(stream(files, seed=4), 0)]
    assert len({str(order) for order in orders}) == 3
    assert batches(stream(files), 1) == orders[1]


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize(("groups_kept", "least", "most"), [(10, 10, 10), (5, 25, 45), (0, 50, 70)])
def test_row_groups_of_small_data_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: bool, groups_kept: int, least: int, most: int
) -> None:
    """Ten row groups of ten int32, split into seven blocks each; at least one is cached."""
    monkeypatch.setattr(stream_module, "MIN_BLOCKS", 64)
    monkeypatch.setattr(stream_module, "CACHE_BYTES", groups_kept * 10 * 4)
    decoded, read = [], stream_module.read_row_group
    monkeypatch.setattr(
        stream_module,
        "read_row_group",
        lambda path, number, columns: decoded.append(number) or read(path, number, columns),
    )
    files = write_shards(tmp_path, [100])
    if lists:
        numbers = pa.array(np.arange(100, dtype=np.int32).reshape(20, 5).tolist(), pa.list_(pa.int32()))
        pq.write_table(pa.table({"number": numbers}), files[0], row_group_size=2)
    batches(stream(files))
    assert set(decoded) == set(range(10))
    assert least <= len(decoded) <= most


def test_row_groups_that_are_split_between_lanes_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """130 row groups are not split otherwise: three are, at the ends of four lanes of 325 rows."""
    monkeypatch.setattr(stream_module, "BYTES_AT_ONCE", 1)  # all lanes are read at the same time
    monkeypatch.setattr(stream_module, "LANE_ENDS_CACHE_BYTES", 8 * 10 * 4)
    decoded, read = [], stream_module.read_row_group
    monkeypatch.setattr(
        stream_module,
        "read_row_group",
        lambda path, number, columns: decoded.append(number) or read(path, number, columns),
    )
    seen = batches(stream(write_shards(tmp_path, [1300]), shuffle_buffer_bytes=4 * 4 * 40))
    assert sorted(chain.from_iterable(seen)) == list(range(1300))
    assert sorted(decoded) == list(range(130))


@pytest.mark.parametrize("start", [0, 1, 5, 18, 19])
def test_stream_resumes_at_any_position(tmp_path: Path, start: int) -> None:
    files = write_shards(tmp_path, [170, 130])
    assert batches(stream(files), start=start) == batches(stream(files))[start:]


@pytest.mark.parametrize("start", [1, 5, 9, 18, 19])
def test_shuffled_stream_resumes_at_any_position(tmp_path: Path, start: int) -> None:
    mixed = stream(write_shards(tmp_path, [200, 100]), shuffle_buffer_bytes=4 * 100)
    assert batches(mixed, start=start) == batches(mixed)[start:]


def test_shuffle_buffer_mixes_rows_of_several_blocks(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [640], rows_per_group=5)
    plain, mixed = stream(files), stream(files, shuffle_buffer_bytes=4 * 4 * 40)
    (first, *_), (mixed_first, *_) = batches(plain), batches(mixed)
    blocks = [{number // 5 for number in batch} for batch in (first, mixed_first)]
    assert len(blocks[0]) == 4, "each lane is at its first block"
    assert len(blocks[1]) > 8, "each lane draws from eight"
    assert batches(mixed) == batches(mixed)
    assert batches(mixed, epoch=1)[0] != mixed_first
    seen = [batch[:4] for batch in batches(mixed)[:10]]
    assert sorted(chain.from_iterable(seen)) == sorted(
        5 * block.row_group + row for block in plain.epoch(0).lanes[0][:8] for row in range(block.rows)
    )


def test_worker_only_reads_its_own_row_groups(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [1320])
    owned = [
        {number // 10 for number in chain.from_iterable(batches(stream(files, rank, 2)))} for rank in (0, 1)
    ]
    assert owned[0].isdisjoint(owned[1])  # the four lanes have 33 each
    assert owned[0] | owned[1] == set(range(132))


def test_few_row_groups_are_split_evenly_over_lanes(tmp_path: Path) -> None:
    few = stream(write_shards(tmp_path, [1000], rows_per_group=1000), lanes=7)
    assert len(few.blocks) == 128
    lanes = few.epoch(0).lanes
    assert sorted(sum(block.rows for block in lane) for lane in lanes) == [142, *[143] * 6]
    assert all(len({block.start // 100 for block in lane}) > 5 for lane in lanes), "from all over the file"


def test_abandoned_reader_thread_ends(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [1000])
    reading = stream(files).read(stream(files).epoch(0))
    next(reading)
    reading.close()  # type: ignore[attr-defined]


def test_rows_are_in_file_order_without_shuffling(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [50, 30])
    plain = ShardStream(files, ["number"], batch_size=16, lanes=1, seed=3, shuffle=False)
    assert list(chain.from_iterable(batches(plain))) == list(range(80))
    assert batches(plain, epoch=1) == batches(plain)


def test_a_part_of_the_examples_is_evenly_spaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "MIN_BLOCKS", 1)
    files = write_shards(tmp_path, [60, 40])  # row groups of 10
    part = ShardStream(files, ["number"], batch_size=16, lanes=1, seed=3, shuffle=False, most_examples=34)
    rows = list(chain.from_iterable(batches(part)))
    assert part.examples == len(rows) <= 40
    assert {row // 10 for row in rows} == {0, 3, 6, 9}
    assert (
        len(batches(ShardStream(files, ["number"], batch_size=50, lanes=1, seed=3, most_examples=100))) == 2
    )


def write_windows(path: Path, rows: int, width: int = 3, kind: pa.DataType | None = None) -> Path:
    """Row n has the `inputs` n, n + 0.5, ... and the `label` n."""
    values = (np.arange(rows)[:, None] + np.arange(width) / 2).astype(np.float32)
    inputs = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
    table = pa.table({"inputs": inputs if kind is None else inputs.cast(kind), "label": np.arange(rows)})
    pq.write_table(table, path, row_group_size=7)
    return path


def test_fixed_length_lists_become_matrices(tmp_path: Path) -> None:
    files = (write_windows(tmp_path / "a.parquet", 14), write_windows(tmp_path / "b.parquet", 3))
    seen = []
    for rank in range(4):
        windows = ShardStream(
            files, ["inputs", "label"], batch_size=8, lanes=4, seed=1, rank=rank, world_size=4
        )
        for batch in windows.read(windows.epoch(0)):
            assert batch["inputs"].shape == (len(batch["label"]), 3)
            assert (batch["inputs"].dtype, batch["label"].dtype) == (np.float32, np.int64)
            assert (batch["inputs"] == batch["label"][:, None] + np.arange(3) / 2).all()
            seen.append(len(batch["label"]))
    assert sum(seen) == 17
    assert 0 in seen


def test_unsupported_or_inconsistent_columns_are_rejected(tmp_path: Path) -> None:
    narrow, wide = write_windows(tmp_path / "a.parquet", 9), write_windows(tmp_path / "b.parquet", 9, width=4)
    options = {"batch_size": 8, "lanes": 1, "seed": 1}
    with pytest.raises(
        ValueError, match=r"inputs is float32 x 4 in the shard .*b.parquet and float32 x 3 in"
    ):
        ShardStream([narrow, wide], ["inputs"], **options)
    ragged = write_windows(tmp_path / "c.parquet", 9, kind=pa.list_(pa.float32()))
    with pytest.raises(
        ValueError, match=r"variable-length lists: it can only be streamed alone, not with \['label'\]"
    ):
        ShardStream([ragged], ["inputs", "label"], **options)
    with pytest.raises(
        ValueError, match=r"inputs has variable-length lists in only one of the shards .*c.parquet"
    ):
        ShardStream([narrow, ragged], ["inputs"], **options)
    texts = write_lists(tmp_path / "e.parquet", [["a"], ["b"]], pa.list_(pa.string()))
    with pytest.raises(
        ValueError, match=r"tokens of the shard .*e.parquet has the type list.*: only numbers"
    ):
        ShardStream([texts], ["tokens"], **options)
    pq.write_table(pa.table({"number": pa.array([1, None, 3])}), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"number of the shard .*d.parquet has missing values"):
        batches(ShardStream([tmp_path / "d.parquet"], ["number"], **options))


def write_lists(path: Path, lists: list, kind: pa.DataType | None = None) -> Path:
    column = pa.array(lists, kind or pa.list_(pa.int32()))
    pq.write_table(pa.table({"other": pa.array(range(len(lists))), "tokens": column}), path, row_group_size=3)
    return path


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=3).filter(any),
    world_size=st.integers(1, 4),
    batch_size=st.integers(4, 40),
    shuffle=st.booleans(),
)
def test_variable_length_lists_yield_each_element_once(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[list[int]],
    world_size: int,
    batch_size: int,
    shuffle: bool,
) -> None:
    lists = [[100 * row + place for place in range(size)] for row, size in enumerate(chain(*sizes))]
    folder, ends = tmp_path_factory.mktemp("lists"), np.cumsum([0, *map(len, sizes)])
    files = [
        write_lists(folder / f"{i}.parquet", lists[start:end])
        for i, (start, end) in enumerate(pairwise(ends))
    ]

    def read(rank: int, world_size: int) -> list[list[tuple[int, int, int]]]:
        reading = ShardStream(
            files,
            ["tokens"],
            batch_size=batch_size,
            lanes=4,
            seed=3,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
        )
        assert reading.examples == sum(map(len, lists))
        found = list(reading.read(reading.epoch(0)))
        assert all(batch["tokens"].dtype == np.int32 for batch in found)
        columns = ("row", "position", "tokens")
        return [list(zip(*(batch[name].tolist() for name in columns), strict=True)) for batch in found]

    alone = read(0, 1)
    shares = [read(rank, world_size) for rank in range(world_size)]
    assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == [sorted(each) for each in alone]
    assert max(map(len, alone)) <= batch_size
    assert sorted(chain(*alone)) == [
        (row, place, number) for row, numbers in enumerate(lists) for place, number in enumerate(numbers)
    ]


@pytest.mark.parametrize("lists", [[[1, 2], [], [3]], [[1, 2], None, [3]], [[1, None]]])
def test_missing_values_are_rejected(tmp_path: Path, lists: list) -> None:
    reading = ShardStream(
        [write_lists(tmp_path / "a.parquet", lists)], ["tokens"], batch_size=8, lanes=1, seed=1
    )
    with pytest.raises(ValueError, match=r"tokens of the shard .*a.parquet has missing values"):
        list(reading.read(reading.epoch(0)))


def test_missing_shard_is_reported(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [100, 100])
    reading = stream(files)
    files[1].unlink()
    with pytest.raises(OSError, match=r"shard-00001.parquet can't be read .*run the flow again"):
        batches(reading)


def test_invalid_streams_are_rejected(tmp_path: Path) -> None:
    files = write_shards(tmp_path, [20])
    with pytest.raises(ValueError, match="8 workers can't share 4 lanes"):
        stream(files, world_size=8)
    with pytest.raises(ValueError, match="batch_size is 3: it must be at least 4"):
        stream(files, batch_size=3)
    with pytest.raises(ValueError, match="shards contain no rows"):
        stream(write_shards(tmp_path / "empty", [0]))
    with pytest.raises(ValueError, match=r"has no column \['weight'\]"):
        ShardStream(files, ["weight"], batch_size=16, lanes=4, seed=0)
    files[0].write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match=r"shard-00000.parquet can't be read"):
        stream(files)
