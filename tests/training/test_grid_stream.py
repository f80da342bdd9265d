"""Streams of the diagonals of a grid: any number of workers, epochs, positions, and damaged files."""

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lexloom.training.grid_stream import DrawnEpisodes, GridStream, StoredBlocks, StoredEpisodes
from lexloom.training.stream import Batch

PARTS, EPISODES = 5, 4
Lengths = np.ndarray


def own(rank: int, workers: int) -> range:
    return range(PARTS * rank // workers, PARTS * (rank + 1) // workers)


def random_lengths() -> Lengths:
    """Pairs of each episode and block: some blocks, a diagonal, and an input part of an episode are empty."""
    lengths = np.random.default_rng(0).integers(0, 6, (EPISODES, PARTS, PARTS))
    i = np.arange(PARTS)
    lengths[1, i, (i + 2) % PARTS] = 0
    lengths[2, 3] = 0
    lengths[:, 4, 1] = 0
    return lengths


def block_of(episode: int, i: int, j: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a block: their targets tell the block, and their contexts the episode and the pair."""
    return np.full(pairs, 100 * i + j, np.uint16), (1000 * episode + np.arange(pairs)).astype(np.uint16)


def write(folder: Path, lengths: Lengths, name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([pa.field("target", pa.uint16(), False), pa.field("context", pa.uint16(), False)])
    for i in range(lengths.shape[1]):
        with pq.ParquetWriter(folder / f"{name}-{i:05d}.parquet", schema) as shard:
            for episode, blocks in enumerate(lengths[:, i]):
                pairs = [block_of(episode, i, j, length) for j, length in enumerate(blocks)]
                columns = [pa.array(np.concatenate(column)) for column in zip(*pairs, strict=True)]
                if len(columns[0]):
                    shard.write_table(pa.table(columns, schema=schema))
    kind = pa.schema([pa.field("pairs", pa.list_(pa.int64()), False)])
    with pq.ParquetWriter(folder / f"blocks-{name}.parquet", kind) as shard:
        for blocks in lengths:
            shard.write_table(pa.table([pa.array(list(blocks), pa.list_(pa.int64()))], schema=kind))
    return folder


def stored(
    folder: Path, rank: int = 0, workers: int = 1, *, shuffle: bool = True, seed: int = 7
) -> GridStream:
    episodes = StoredEpisodes(folder, "train", parts=PARTS, seed=seed, shuffle=shuffle)
    return GridStream(episodes, PARTS, own(rank, workers), shuffle=shuffle)


def read(stream: GridStream, number: int, start: int = 0) -> list[Batch]:
    with closing(stream.read(stream.epoch(number), start)) as batches:
        return list(batches)


def equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        one[name].tolist() == other[name].tolist()
        for one, other in zip(ours, theirs, strict=True)
        for name in ("target", "context", "bounds")
    )


def episodes_of(batches: list[Batch]) -> list[int]:
    """The episodes of the batches, in order, as their pairs tell."""
    seen = [int(context) // 1000 for batch in batches for context in batch["context"]]
    return list(dict.fromkeys(seen))


def check_diagonals(
    batches: list[Batch], lengths: Lengths, owned: range, order: list[int], first: int
) -> None:
    assert len(batches) == len(order) * PARTS
    for step, batch in enumerate(batches):
        episode, diagonal = order[step // PARTS], (first + step) % PARTS
        bounds = [0]
        for index, i in enumerate(owned):
            j = (i + diagonal) % PARTS
            bounds.append(bounds[-1] + int(lengths[episode, i, j]))
            block = slice(batch["bounds"][index], batch["bounds"][index + 1])
            targets, contexts = block_of(episode, i, j, int(lengths[episode, i, j]))
            assert batch["target"][block].tolist() == targets.tolist()
            assert batch["context"][block].tolist() == contexts.tolist()
        assert batch["bounds"].tolist() == bounds
        assert len(batch["target"]) == len(batch["context"]) == bounds[-1]


# Stored episodes


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_diagonals_have_the_blocks_of_the_own_parts(tmp_path: Path, workers: int) -> None:
    lengths = random_lengths()
    folder = write(tmp_path, lengths)
    for number in range(3):
        orders = set()
        for rank in range(workers):
            batches = read(stored(folder, rank, workers), number)
            order = episodes_of(read(stored(folder), number))
            orders.add(tuple(order))
            check_diagonals(batches, lengths, own(rank, workers), order, 0)
        assert len(orders) == 1
        assert sorted(order) == list(range(EPISODES))


def test_episodes_are_shuffled_by_seed_and_epoch(tmp_path: Path) -> None:
    folder = write(tmp_path, np.ones((30, PARTS, PARTS), int))
    orders = [
        tuple(episodes_of(read(stored(folder, seed=seed), number))) for seed in (7, 8) for number in range(3)
    ]
    assert len(set(orders)) == 6
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] == tuple(episodes_of(read(stored(folder), 0)))


def test_epoch_counts_the_examples_of_all_workers(tmp_path: Path) -> None:
    lengths = random_lengths()
    folder = write(tmp_path, lengths)
    for number in range(2):
        batches = read(stored(folder), number)
        sizes = np.cumsum([0, *(len(batch["target"]) for batch in batches)])
        for rank in range(3):
            stream = stored(folder, rank, 3)
            epoch = stream.epoch(number)
            assert epoch.steps == EPISODES * PARTS
            assert [epoch.examples_until(step) for step in range(epoch.steps + 1)] == sizes.tolist()
            assert stream.examples == lengths.sum() == sizes[-1]


@pytest.mark.parametrize("start", [0, 1, 4, 5, 7, 19, 20])
@pytest.mark.parametrize("workers", [1, 3])
def test_reading_continues_at_any_step(tmp_path: Path, start: int, workers: int) -> None:
    folder = write(tmp_path, random_lengths())
    for rank in range(workers):
        stream = stored(folder, rank, workers)
        assert equal(read(stream, 1, start), read(stream, 1)[start:])


@pytest.mark.parametrize("step", [0, 1, 3, 5, 17])
def test_pass_without_shuffling_begins_at_the_diagonal_of_a_step(tmp_path: Path, step: int) -> None:
    """So an evaluation finds the output parts where they are, and leaves them there."""
    lengths = random_lengths()
    folder = write(tmp_path, lengths)
    for rank in range(2):
        stream = stored(folder, rank, 2, shuffle=False)
        epoch, batches = stream.epoch(step), read(stream, step)
        check_diagonals(batches, lengths, own(rank, 2), list(range(EPISODES)), step % PARTS)
        assert epoch.steps == len(batches) == EPISODES * PARTS
    whole = stored(folder, shuffle=False)
    sizes = np.cumsum([0, *(len(batch["target"]) for batch in read(whole, step))])
    epoch = whole.epoch(step)
    assert [epoch.examples_until(step) for step in range(epoch.steps + 1)] == sizes.tolist()


def test_shards_without_pairs_have_empty_blocks(tmp_path: Path) -> None:
    lengths = np.zeros((2, PARTS, PARTS), int)
    lengths[1, 2, 3] = 4
    (batch,) = [batch for batch in read(stored(write(tmp_path, lengths)), 0) if len(batch["target"])]
    assert batch["bounds"].tolist() == [0, 0, 0, 4, 4, 4]
    assert stored(tmp_path, 0, 5).examples == 4


def test_thread_ends_when_reading_stops(tmp_path: Path) -> None:
    batches = stored(write(tmp_path, random_lengths())).read(stored(tmp_path).epoch(0))
    next(batches)
    assert any(thread.name == "read-ahead" for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name == "read-ahead" for thread in threading.enumerate())


# Errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, random_lengths())


def test_shards_of_another_grid_are_rejected(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"blocks-train.parquet has blocks of a grid with 5 parts, not 4"):
        StoredEpisodes(folder, "train", parts=4, seed=0)


def test_shards_without_any_pair_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the shards .*/train-\*.parquet contain no pairs"):
        stored(write(tmp_path, np.zeros((2, PARTS, PARTS), int)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def replace_with_text(path: Path) -> None:
    path.write_text("no Parquet file")


def rename_columns(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([f"other_{name}" for name in table.column_names]), path)


def overwrite_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 3] = b"\xff" * (len(content) // 3 - 4)
    path.write_bytes(content)


BROKEN = [Path.unlink, cut, replace_with_text, rename_columns, overwrite_pages]


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_table_of_blocks_is_reported(folder: Path, damage: Any) -> None:
    damage(folder / "blocks-train.parquet")
    with pytest.raises(ValueError, match=r"shard .*/blocks-train.parquet can't be read \(.*\): rebuild it"):
        stored(folder)


@pytest.mark.parametrize("damage", BROKEN)
def test_damaged_shard_is_reported(folder: Path, damage: Any) -> None:
    damage(folder / "train-00003.parquet")
    sentence = r"row group \d of the shard .*/train-00003.parquet can't be read \(.*\): run the flow again"
    assert len(read(stored(folder, 0, 5), 0)) == EPISODES * PARTS, "another worker does not read it"
    with pytest.raises(OSError, match=sentence):
        read(stored(folder, 3, 5), 0)


def test_shard_with_fewer_episodes_is_reported(folder: Path) -> None:
    path = folder / "train-00003.parquet"
    with pq.ParquetFile(path) as file:
        first = file.read_row_group(0)
    pq.write_table(first, path)
    with pytest.raises(OSError, match=r"row group \d of the shard .*/train-00003.parquet can't be read"):
        read(stored(folder), 0)


def test_row_group_of_another_length_is_reported(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "train-00003.parquet"), folder / "train-00003.parquet")
    with pytest.raises(
        ValueError, match=r"row group 0 of the shard .* has \d+ pairs, not \d+: rebuild the pairs"
    ):
        read(stored(folder), 0)


# Drawn episodes


def write_tokens(folder: Path) -> list[Path]:
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = []
    for shard in range(3):
        rows = [list(range(length)) for length in random.integers(1, 40, 50)]
        paths.append(folder / f"shard-{shard:05d}.parquet")
        pq.write_table(
            pa.table({"tokens": pa.array(rows, pa.list_(pa.int32()))}), paths[-1], row_group_size=10
        )
    return paths


class Draws:
    """Pairs every token with itself, in the blocks of random parts; records the tokens and the seeds."""

    def __init__(self) -> None:
        self.tokens: list[list[tuple[int, int]]] = []
        self.seeds: list[int] = []

    def __call__(self, batch: Batch, seed: int, owned: range) -> StoredBlocks:
        self.tokens.append(list(zip(batch["row"].tolist(), batch["position"].tolist(), strict=True)))
        self.seeds.append(seed)
        random = np.random.default_rng(seed)
        block = random.integers(0, PARTS * PARTS, len(batch["tokens"]))
        order = np.argsort(block, kind="stable")
        bounds = np.searchsorted(block[order], np.arange(PARTS * PARTS + 1))
        first, last = bounds[owned.start * PARTS], bounds[owned.stop * PARTS]
        rows = np.arange(owned.start, owned.stop)[:, None] * PARTS + np.arange(PARTS + 1)
        ids = batch["tokens"][order].astype(np.uint16)[first:last]
        return StoredBlocks(ids, ids, bounds[rows] - first)


def drawn(
    files: list[Path], draws: Draws, rank: int = 0, workers: int = 1, *, shuffle: bool = True
) -> GridStream:
    episodes = DrawnEpisodes(files, draws, tokens=100, parts=PARTS, seed=7, shuffle=shuffle)
    return GridStream(episodes, PARTS, own(rank, workers), shuffle=shuffle)


def test_every_token_is_in_one_episode_of_an_epoch(tmp_path: Path) -> None:
    files, draws = write_tokens(tmp_path / "tokens"), Draws()
    lengths = [len(row) for path in files for row in pq.read_table(path)["tokens"].to_pylist()]
    stream = drawn(files, draws)
    batches = read(stream, 0)
    assert sorted(place for tokens in draws.tokens for place in tokens) == [
        (row, position) for row, length in enumerate(lengths) for position in range(length)
    ]
    assert [len(tokens) for tokens in draws.tokens[:-1]] == [100] * (sum(lengths) // 100)
    assert len(batches) == stream.epoch(0).steps == PARTS * len(draws.tokens)
    assert sum(len(batch["target"]) for batch in batches) == sum(lengths)


def test_examples_are_tokens_in_equal_shares(tmp_path: Path) -> None:
    files = write_tokens(tmp_path / "tokens")
    stream = drawn(files, Draws())
    epoch = stream.epoch(3)
    total = sum(len(row) for path in files for row in pq.read_table(path)["tokens"].to_pylist())
    assert stream.examples == total == epoch.examples_until(epoch.steps)
    until = [epoch.examples_until(step) for step in range(epoch.steps + 1)]
    assert until[:11] == list(range(0, 220, 20))
    assert max(np.diff(until[-6:])) - min(np.diff(until[-6:])) <= 1


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_draw_shares_of_the_same_episodes(tmp_path: Path, workers: int) -> None:
    files, whole = write_tokens(tmp_path / "tokens"), Draws()
    batches = read(drawn(files, whole), 1)
    shares = []
    for rank in range(workers):
        draws = Draws()
        shares.append(read(drawn(files, draws, rank, workers), 1))
        assert (draws.tokens, draws.seeds) == (whole.tokens, whole.seeds)
    for step, batch in enumerate(batches):
        together = [ids for share in shares for ids in share[step]["target"].tolist()]
        assert together == batch["target"].tolist()


def test_epochs_differ_and_evaluations_do_not(tmp_path: Path) -> None:
    files = write_tokens(tmp_path / "tokens")

    def seeds(number: int, *, shuffle: bool) -> tuple[list[int], list[list[tuple[int, int]]]]:
        draws = Draws()
        read(drawn(files, draws, shuffle=shuffle), number)
        return draws.seeds, draws.tokens

    first, second = seeds(0, shuffle=True), seeds(1, shuffle=True)
    assert len({*first[0], *second[0]}) == 2 * len(first[0])
    assert first[1] != second[1]
    assert seeds(0, shuffle=False) == seeds(8, shuffle=False)


@pytest.mark.parametrize("start", [1, 5, 12])
def test_drawing_continues_at_any_step(tmp_path: Path, start: int) -> None:
    files = write_tokens(tmp_path / "tokens")
    assert equal(read(drawn(files, Draws()), 1, start), read(drawn(files, Draws()), 1)[start:])


def test_error_of_a_draw_is_raised(tmp_path: Path) -> None:
    def fail(batch: Batch, seed: int, owned: range) -> StoredBlocks:
        raise ValueError("no such word")

    with pytest.raises(ValueError, match="no such word"):
        read(drawn(write_tokens(tmp_path / "tokens"), fail), 0)  # type: ignore[arg-type]
