"""A fifth model family: three files of another package, and Lexloom trains, lists, loads and deploys it."""

import json
import random
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint

from lexloom.deployments.cli.main import main
from lexloom.deployments.server.register import read_deployments
from lexloom.deployments.web import handlers
from lexloom.deployments.web.layout import TABS, list_models
from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.flows.registry import flows
from lexloom.models.language_model import load_language_model
from lexloom.models.registry import families
from lexloom.models.sampling import Sampling
from lexloom.tasks.evaluate.language_model import LMEvaluation
from lexloom.tasks.generate_samples import Samples
from lexloom.tasks.store.artifacts import Store
from tests.families.conftest import HERE, ROOT, Installed

PAGE = ROOT / "docs" / "adding-a-model.md"
PHRASES = ("the people of the union", "a long peace", "we the states")
FLAGS = [
    *("--runner", "local", "--epochs", "4", "--documents", "line", "--encoding", "characters"),
    *("--context", "16", "--width", "48"),
]
STAGES = [
    *("corpus", "subwords", "windows", "train_lstm_lm"),
    *("evaluate_lm", "generate_samples", "report_lm"),
]


class Trained(NamedTuple):
    """A run of the flow: its store, its result, and what it printed."""

    store: Store
    outcome: dict[str, Any]
    printed: str

    @property
    def name(self) -> str:
        """The model, as `stage/key`."""
        return "/".join(Path(self.outcome["model"]).parts[-2:])


@pytest.fixture(scope="module")
def trained(package: Installed, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    chance = random.Random(0)
    lines = [" ".join(chance.choices(PHRASES, k=12)) for _ in range(100)]
    (folder / "text.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "lexloom", "lstm-lm", "--source", "text.txt", "--store", "store"]
    done = subprocess.run(
        [*command, "--json", *FLAGS],
        env=package.environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Trained(Store(folder / "store"), json.loads(done.stdout), done.stderr)


def test_the_command_line_runs_the_flow_with_the_shared_stages(trained: Trained) -> None:
    printed = [line.split()[0] for line in trained.printed.splitlines() if line]
    assert [name for name in printed if name in STAGES] == STAGES
    assert trained.outcome["flow"] == "lstm-lm"
    assert trained.name.startswith("train_lstm_lm/")


def test_the_shared_stages_evaluate_sample_and_report_it(trained: Trained) -> None:
    (file,) = trained.store.root.glob("evaluate_lm/*/evaluation.json")
    scores = {s.name: s for s in LMEvaluation.model_validate_json(file.read_bytes()).scores}
    assert list(scores) == ["LSTM language model", "5-gram", "unigram"]
    assert scores["LSTM language model"].bits_per_byte < scores["unigram"].bits_per_byte  # type: ignore[operator]
    (file,) = trained.store.root.glob("generate_samples/*/samples.json")
    assert len(Samples.model_validate_json(file.read_bytes()).samples) == 3
    report = Path(trained.outcome["report"]).read_text()
    for text in ("LSTM language model", "Evaluation", "Samples", "parameters"):
        assert text in report
    card = (Path(trained.outcome["model"]) / "README.md").read_text()
    assert "Trained with Lexloom on" in card


@pytest.mark.usefixtures("installed")
def test_the_command_line_lists_the_flow_and_its_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    for arguments, text in (
        (["--help"], "Train an LSTM language model"),
        (["lstm-lm", "--help-all"], "--width"),
    ):
        assert main(arguments) == 0
        assert text in capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_generate_finds_the_latest_model_and_continues_a_prompt(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", str(trained.store.root))
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    assert main(["generate", "latest", "--prompt", "the ", "--tokens", "30", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    model = load_language_model(trained.outcome["model"])
    pieces = model.generate(["the "], Sampling(max_tokens=30, seed=3))
    assert printed == f"the {''.join(piece for (piece,) in pieces)}\n"


@pytest.mark.usefixtures("installed")
def test_a_model_that_is_loaded_on_another_machine_needs_the_package(trained: Trained) -> None:
    assert families()["lstm_lm"].title == "LSTM language model"
    families.cache_clear()
    sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "lexloom_lstm").is_dir()]
    with pytest.raises(ValueError, match=r"unknown kind 'lstm_lm' \(known: sentiment, transformer"):
        load_language_model(trained.outcome["model"])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("tab", ["write", "next-token"])
def test_the_page_lists_the_model(trained: Trained, tab: str) -> None:
    models, hint, _ = list_models(ModelCatalog(trained.store), TABS[tab], None)
    ((label, name),) = models["choices"]
    assert name == models["value"] == trained.name
    assert re.search(r"^text-\d{4}-\d\d-\d\d · LSTM language model · [\d.]+ bits per byte$", label)
    assert hint["visible"] is False


@pytest.mark.usefixtures("installed")
def test_the_page_generates_text_and_predicts_tokens_with_the_model(trained: Trained) -> None:
    catalog = ModelCatalog(trained.store)
    *_, written = handlers.write(catalog, trained.name, "the ", 20, 0.8, 0, 1, 0, 1, 3)
    *_, predicted = handlers.next_token(catalog, trained.name, "the peopl")
    assert len(unescape(re.sub("<[^>]+>", "", written))) > len("the ")
    assert "The model sees the whole context" in predicted
    assert "%" in predicted


@pytest.mark.usefixtures("installed")
def test_the_flow_is_deployed(trained: Trained) -> None:
    document = read_deployments(SimpleNamespace(read_deployments=list))
    entry = next(each for each in document["deployments"] if each["name"] == "lstm-lm")
    assert entry["description"].startswith("Train an LSTM language model. ")
    assert load_flow_from_entrypoint(entry["entrypoint"]).name == "lstm-lm"
    assert yaml.safe_load(yaml.safe_dump(document)) == document


@pytest.mark.usefixtures("installed")
def test_status_shows_its_stage_and_asks_for_its_runs(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", str(trained.store.root))
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    asked: list[str] = []

    def latest_runs(flows: list[str], limit: int) -> tuple[str, list[Any]]:
        asked.extend(flows)
        return "a server", []

    monkeypatch.setattr("lexloom.deployments.cli.runs.latest_runs", latest_runs)
    assert main(["status"]) == 0
    assert "train_lstm_lm" in capsys.readouterr().out
    assert "lstm-lm" in asked


@pytest.mark.usefixtures("installed")
def test_its_form_describes_every_field() -> None:
    schema = flows()["lstm-lm"].config().model_json_schema()
    fields = [field for each in schema["$defs"].values() for field in each.get("properties", {}).values()]
    assert fields
    assert all(field.get("description") for field in [*fields, *schema["properties"].values()])


# the documentation

BLOCK = re.compile(r"^`lexloom_lstm/(\w+\.py)`.*?\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
OMITTED = re.compile(r"^ *\.\.\.\n", re.MULTILINE)


def test_the_documentation_shows_the_files_as_they_are() -> None:
    shown = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [name for name, _ in shown] == ["model.py", "train.py", "lstm_lm.py"]
    for name, code in shown:
        file = (HERE / "lexloom_lstm" / name).read_text(encoding="utf-8")
        parts = [part.strip("\n") for part in OMITTED.split(code)]
        assert all(part in file for part in parts), f"{PAGE.name} differs from {name}"
        assert len(code) > len(file) / 2


def test_the_documentation_shows_the_entry_points() -> None:
    from tests.families.conftest import ENTRY_POINTS

    page = PAGE.read_text(encoding="utf-8")
    for line in ENTRY_POINTS.splitlines():
        name, _, module = line.partition(" = ")
        if module:
            assert f'{name} = "{module}"' in page
