"""The `lexloom` command: one-line errors, help texts and the commands on the store."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lexloom.deployments.cli.main import main
from lexloom.flows.config import flags, in_flags, main_paths, parse
from lexloom.flows.registry import flows
from lexloom.models.normalization import DESCRIPTIONS, Normalization
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.store.artifacts import Store
from tests.deployments.cli.command_line import parse_command
from tests.models.silent import silent_model
from tests.tasks.store.test_artifacts import put, read, write


@pytest.fixture
def model(tmp_path: Path) -> str:
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    WordVectors(["war", "wars", "peace", "tea"], rows).save(folder)
    return str(folder)


def record(folder: Path, rules: Normalization, **description: str) -> None:
    """Write the normalization rules into a model's description."""
    path = next(each for name in DESCRIPTIONS if (each := folder / name).is_file() or name == "config.json")
    described = json.loads(path.read_text()) if path.is_file() else description
    path.write_text(json.dumps({**described, "normalization": rules.model_dump()}))


def config_of(flow: str, *flags: str) -> BaseModel:
    """Return the config that a flow gets from these flags."""
    given = parse_command([flow, *flags])
    return parse({tuple(name.split("__")): value for name, value in given.items()}, flows()[flow].config())


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails, and return its error: one line, no traceback."""
    assert main(list(arguments)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--window", "0", "greater than or equal to 1"),
        ("--dim", "0", "greater than or equal to 1"),
        ("--dim", "5000", "less than or equal to 4096"),
        ("--negatives", "0", "greater than or equal to 1"),
        ("--epochs", "0", "greater than or equal to 1"),
        ("--workers", "1025", "less than or equal to 1024"),
        ("--parts", "0", "greater than or equal to 1"),
        ("--pairs-per-episode", "0", "greater than or equal to 1"),
        ("--learning-rate", "fast", "valid number"),
    ],
)
def test_a_value_out_of_bounds_names_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, bound: str
) -> None:
    said = complaint(capsys, "word2vec", flag, value)
    assert flag in said
    assert bound in said
    assert value in said


def test_neighbours_and_analogies_are_printed(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert main(["neighbours", model, "war", "-k", "2"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["war", "wars", "peace"]
    assert main(["analogy", model, "war", "wars", "peace", "-k", "1"]) == 0
    assert "tea" in capsys.readouterr().out


def test_query_words_are_normalized_like_the_training_text(
    capsys: pytest.CaptureFixture[str], model: str
) -> None:
    record(Path(model), Normalization(), model="word2vec")
    assert main(["neighbours", model, "WAR!", "-k", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "war"
    assert main(["analogy", model, "War", "WARS", "«Peace»", "-k", "1"]) == 0
    assert capsys.readouterr().out.startswith("war is to wars as peace is to")
    assert "splits 'war peace' into 2 words" in complaint(capsys, "neighbours", model, "war peace")


def test_prompts_are_normalized_like_the_training_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tests.deployments.store import write_transformer, write_windows

    for write_model in (write_windows, write_transformer):
        folder = tmp_path / write_model.__name__
        folder.mkdir()
        write_model(folder)
        record(folder, AsWritten(lower=True, strip_markup=True))
        assert main(["generate", str(folder), "--prompt", "<i>The</i> PEOPLE", "--tokens", "3"]) == 0
        assert capsys.readouterr().out.startswith("the people")


def test_empty_continuations_are_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lexloom.deployments.cli.models.load_language_model", lambda name: silent_model())
    for options, advice in (([], ""), (["--stop-at-end"], "; without --stop-at-end, it continues")):
        assert main(["generate", str(tmp_path), "--prompt", "The", "--tokens", "3", *options]) == 0
        printed, said = capsys.readouterr()
        assert printed == "The\n"
        assert "warning: prompt 'The': the model generated no text" in said
        assert advice in said


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["analogy"],
        ["classify"],
        ["neighbours"],
        ["sentiment"],
        ["word2vec"],
        ["store", "ls"],
        ["store", "gc"],
    ):
        assert main([*command, "--help"]) == 0
        assert f"Usage: lexloom {' '.join(command)} " in capsys.readouterr().out


def test_an_unknown_flag_is_reported_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "word2vec", "--sorce", "books/")
    assert "Unknown option: --sorce. Did you mean --source?" in said


def test_the_last_value_of_a_repeated_flag_counts() -> None:
    assert config_of("word2vec", "--dim", "8", "--lower", "--dim", "9", "--no-lower").train.dim == 9  # type: ignore[attr-defined]


def test_a_hyphen_is_a_value() -> None:
    assert config_of("word2vec", "--source", "-", "--limit", "3").corpus.source == "-"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wrd2vec"], 'Unknown command "wrd2vec". Did you mean "word2vec"?'),
        (["word2vec", "--runner", "rya"], 'Invalid value "rya" for --runner.'),
        (["word2vec", "--dim"], "--dim requires an argument"),
        (["word2vec", "books/"], "Unused Tokens: ['books/']"),
        (["neighbours"], "MODEL requires an argument"),
        (["status", "--runs", "few"], 'Invalid value for --runs: unable to convert "few" into int'),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert says in complaint(capsys, *arguments)


def test_verifying_a_store_that_does_not_exist_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no store at /nowhere" in complaint(capsys, "store", "verify", "--store", "/nowhere")


@pytest.mark.parametrize("flow", flows())
def test_the_machine_is_measured_by_default(flow: str) -> None:
    def choices(*given: str) -> tuple[Any, ...]:
        train = config_of(flow, *given).train  # type: ignore[attr-defined]
        return train.workers, train.threads, train.device, train.runner

    assert choices() == ("auto",) * 4
    assert (
        choices("--workers", "auto", "--threads", "auto", "--device", "auto", "--runner", "auto") == choices()
    )
    assert choices("--workers", "3", "--threads", "2") == (3, 2, "auto", "auto")
    assert choices("--runner", "local", "--workers", "2") == (2, "auto", "auto", "local"), "not an error"


def test_help_shows_that_a_number_may_be_auto(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["word2vec", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--workers" in shown
    assert "[default: auto]" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["word2vec", "--min-workers", "2", "--workers", "1"],
            "--min-workers 2 exceeds the 1 worker: lower",
        ),
        (
            ["window-lm", "--vectors-min-workers", "2", "--vectors-workers", "1"],
            "--vectors-min-workers 2 exceeds the 1 worker",
        ),
        (
            ["window-lm", "--min-workers", "3", "--workers", "2"],
            "error: --min-workers 3 exceeds the 2 workers",
        ),
        (["word2vec", "--min-learning-rate", "0.5"], "--min-learning-rate 0.5 is above --learning-rate 0.05"),
        (
            ["sentiment", "--test-share", "0"],
            "--test-share is 0, so there are no test reviews: raise it, or set --test-source",
        ),
        (
            ["sentiment", "--validation-share", "0.6", "--test-share", "0.5"],
            "--validation-share 0.6 and --test",
        ),
    ],
)
def test_errors_name_flags(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert says in complaint(capsys, *arguments)


def test_names_of_the_users_data_are_not_replaced_by_flags() -> None:
    config = flows()["word2vec"].config()
    said = "no column 'min_count' in data/min_count.csv: lower min_count."
    assert in_flags(said, config) == "no column 'min_count' in data/min_count.csv: lower --min-count."


@pytest.mark.parametrize("flow", flows())
def test_help_names_flags(flow: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flow, "--help-all"]) == 0
    said = capsys.readouterr().out
    names = {path[-1] for path, _, _ in flags(flows()[flow].config()) if "_" in path[-1]}
    assert not [name for name in names if re.search(rf"\b{name}\b", said)]


@pytest.mark.parametrize("flow", flows())
def test_help_lists_the_main_parameters_and_help_all_every_one(
    flow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = flows()[flow].config()
    every = {flag for _, _, flag in flags(config)}
    main_ones = {flag for path, _, flag in flags(config) if path in main_paths(config)}

    def listed(option: str) -> set[str]:
        assert main([flow, option]) == 0
        return {*re.findall(r"--[a-z0-9-]+", capsys.readouterr().out)} & every

    assert listed("--help") == main_ones
    assert 10 <= len(main_ones) <= 20
    assert "--name" in main_ones
    assert listed("--help-all") == every


HEAVY = {"numpy", "pyarrow", "torch", "prefect", "ray", "transformers"}


def test_the_version_is_that_of_the_package_and_takes_no_heavy_import() -> None:
    code = (
        "import sys\nfrom lexloom.deployments.cli.main import main\n"
        f"print(main(['--version']), {HEAVY} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"lexloom {version('lexloom')}\n0 set()\n"


def test_an_unknown_word_gets_near_spellings(capsys: pytest.CaptureFixture[str], model: str) -> None:
    said = complaint(capsys, "neighbours", model, "peaze")
    assert "'peaze'" in said
    assert "peace" in said


def test_a_folder_that_is_no_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(capsys, "neighbours", str(tmp_path), "war")


def test_the_store_is_listed_verified_and_cleared(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    artifact = put(store, "corpus", "k1", limit=5)
    put(store, "corpus", "k2", limit=6)
    assert main(["store", "ls"]) == 0
    assert "2 artifacts" in capsys.readouterr().out
    assert main(["store", "verify"]) == 0
    assert capsys.readouterr().out == "2 intact, 0 damaged, 0 outdated\n"
    assert main(["store", "verify", "--all"]) == 0
    assert capsys.readouterr().out.startswith("corpus/k1  intact\ncorpus/k2  intact\n2 intact")
    (artifact.folder / "data.txt").write_text("TEXT")
    assert main(["store", "verify"]) == 1
    assert "corpus/k1  data.txt does not match its digest" in capsys.readouterr().out
    assert main(["store", "gc", "--keep", "1"]) == 0
    assert "freed" in capsys.readouterr().out
    assert len(list(store.manifests())) == 1


def test_explain_prints_why_a_stage_ran(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    manifest = read(put(store, "corpus", "k1"))
    write(store, manifest.model_copy(update={"why": ["corpus.limit: 5 -> 6"]}))
    assert main(["store", "explain", "corpus"]) == 0
    assert "corpus.limit: 5 -> 6" in capsys.readouterr().out
    assert "matches 'pears': the store has the stages corpus" in complaint(
        capsys, "store", "explain", "pears"
    )


def test_the_store_flag_selects_the_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    put(Store(tmp_path / "other"), "corpus", "k1")
    assert main(["store", "ls", "--store", str(tmp_path / "other")]) == 0
    assert "1 artifact," in capsys.readouterr().out


def test_a_negative_number_of_artifacts_to_keep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--keep is -1" in complaint(capsys, "store", "gc", "--keep", "-1")


def test_a_missing_optional_package_is_reported_with_its_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("model").mkdir()
    for name in ("family", "classifier"):
        monkeypatch.delitem(sys.modules, f"lexloom.models.sentiment.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "tokenizers is not installed: pip install 'lexloom[sentiment]'" in complaint(
        capsys, "classify", "model", "good"
    )
