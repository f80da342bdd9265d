"""The model families: those of Lexloom and of other packages, found without importing them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lexloom.models import registry
from lexloom.models.registry import families, find_family, load_model, stages

DECLARATION = """
FAMILY = ModelFamily(kind="{kind}", title="another model", stage="train_it", capability="{capability}")
"""


@pytest.fixture(autouse=True)
def fresh_registry() -> None:
    families.cache_clear()


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    name: str = "other",
    module: str = "other_model",
) -> None:
    """Put a distribution with a model family on Python's path; its module fails when it is imported."""
    (folder / "other_model.py").write_text(f"1 / 0\n{source}")
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(folder)


def describe(folder: Path, **description: str) -> Path:
    (folder / "config.json").write_text(json.dumps(description))
    return folder


def test_the_built_in_families_and_the_stages_that_train_them() -> None:
    assert {family.kind: (family.stage, family.capability) for family in families().values()} == {
        "sentiment": ("train_sentiment", "classify"),
        "transformer": ("train_transformer", "generate"),
        "window_lm": ("train_window_lm", "generate"),
        "word2vec": ("train_word2vec", "neighbours"),
    }
    assert stages("generate") == ("train_transformer", "train_window_lm")


@pytest.mark.parametrize("kind", ["sentiment", "transformer", "window_lm", "word2vec"])
def test_a_family_is_listed_as_its_module_declares_it(kind: str) -> None:
    module = __import__(families()[kind].module, fromlist=["FAMILY"])
    assert families()[kind] == module.FAMILY
    assert callable(module.load)


def test_families_are_listed_without_torch_and_loaded_without_each_other() -> None:
    """Importing torch takes seconds; the transformer and the encoder are not needed for word vectors."""
    code = (
        "import sys; from lexloom.models.registry import families; families();"
        "assert not {'torch', 'numba'} & set(sys.modules);"
        "import lexloom.models.word2vec.family;"
        "others = ('lexloom.models.transformer', 'lexloom.models.sentiment', 'lexloom.models.window_lm');"
        "assert not [name for name in sys.modules if name.startswith(others)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_another_package_adds_a_family_that_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, DECLARATION.format(kind="other", capability="generate"))
    assert families()["other"].module == "other_model"
    assert stages("generate")[-1] == "train_it"
    assert "other_model" not in sys.modules


@pytest.mark.parametrize(
    ("source", "name", "module", "error", "sentence"),
    [
        ("", "other", "nowhere.model", ImportError, "other names the module nowhere.model, which is missing"),
        ("", "other", "other_model", ValueError, "declares no model family"),
        ("FAMILY = ModelFamily(kind=KIND)\n", "other", "other_model", ValueError, "FAMILY can't be read"),
        ("FAMILY = ModelFamily(kind='x')\n", "other", "other_model", ValueError, "FAMILY can't be read"),
        (
            DECLARATION.format(kind="other", capability="sing"),
            *("other", "other_model", ValueError, "the capability 'sing' is not one of generate, classify"),
        ),
        (
            DECLARATION.format(kind="another", capability="generate"),
            *("other", "other_model", ValueError, "declares the kind another: give both the same name"),
        ),
        (
            DECLARATION.format(kind="word2vec", capability="generate"),
            *("word2vec", "other_model", ValueError, r"but word2vec is lexloom\.models\.word2vec\.family"),
        ),
    ],
)
def test_a_wrong_registration_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    name: str,
    module: str,
    error: type[Exception],
    sentence: str,
) -> None:
    install(tmp_path, monkeypatch, source, name, module)
    with pytest.raises(error, match=sentence) as raised:
        families()
    assert "\n" not in str(raised.value)


def test_the_kind_of_a_folder_chooses_the_family(tmp_path: Path) -> None:
    assert find_family(describe(tmp_path, model="window_lm"), "generate").kind == "window_lm"
    (tmp_path / "lexloom.json").write_text(json.dumps({"model": "transformer"}))
    assert find_family(tmp_path, "generate").kind == "transformer", "lexloom.json is read first"


def test_folders_of_other_tools_name_no_kind(tmp_path: Path) -> None:
    assert find_family(tmp_path, "neighbours").kind == "word2vec"
    assert find_family(describe(tmp_path, model_type="bert"), "classify").kind == "sentiment"
    with pytest.raises(FileNotFoundError, match=r"neither lexloom\.json nor config\.json in it names a kind"):
        find_family(tmp_path, "generate")


def test_a_folder_can_not_name_code_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only registered families are imported, whatever the description says."""
    (tmp_path / "evil_model.py").write_text(DECLARATION.format(kind="evil_model", capability="generate"))
    monkeypatch.syspath_prepend(tmp_path)
    describe(tmp_path, model="evil_model", module="evil_model")
    with pytest.raises(ValueError, match="unknown kind 'evil_model'") as raised:
        load_model(tmp_path, "generate")
    assert "known: sentiment, transformer, window_lm, word2vec" in str(raised.value)
    assert "install the package that adds this kind" in str(raised.value)
    assert "evil_model" not in sys.modules


def test_a_model_that_lacks_the_capability_is_refused(tmp_path: Path) -> None:
    describe(tmp_path, model="word2vec")
    with pytest.raises(ValueError, match=r"contains a word2vec model, which can't generate text: use"):
        load_model(tmp_path, "generate")


def test_a_missing_folder_and_a_damaged_description_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist: `lexloom store ls`"):
        load_model(tmp_path / "nowhere", "generate")
    for content in ("[1]", "{", '"text"'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json does not describe a model"):
            load_model(tmp_path, "generate")
