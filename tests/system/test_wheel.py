"""A wheel of the project, inside another project that has folders of the same names."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("deployments", "flows", "models", "tasks", "training")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that is built from a copy of the sources."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("lexloom", *FOLDERS):
        shutil.copytree(
            ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    built = tmp_path_factory.mktemp("wheel")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(sources))
    subprocess.run([*PIP, *build], check=True)
    return next(built.glob("*.whl"))


@pytest.fixture
def project(wheel: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A project that must not be imported, and an environment with the wheel."""
    site, folder = tmp_path / "site", tmp_path / "project"
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('the {name} of the project')\n")
    (folder / "text.txt").write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)
    return folder, {**os.environ, "PYTHONPATH": str(site), "LEXLOOM_STORE": str(tmp_path / "store")}


def test_the_wheel_installs_one_package(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "lexloom",
        f"lexloom-{version('lexloom')}.dist-info",
    }
    sources = {path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*.py")}
    assert {f"lexloom/{name}" for name in sources} <= set(names)
    assert {"lexloom/py.typed", "lexloom/deployments/prefect.yaml"} <= set(names)


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_it_trains_inside_a_project_that_has_its_own_models_and_tasks(
    project: tuple[Path, dict[str, str]], runner: str
) -> None:
    folder, environment = project
    command = [sys.executable, "-m", "lexloom", "word2vec", "--source", "text.txt", "--dim", "8", "--json"]
    workers = "2" if runner == "ray" else "1"
    done = subprocess.run(
        [*command, "--runner", runner, "--workers", workers, "--epochs", "1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (Path(json.loads(done.stdout.splitlines()[-1])["model"]) / "model.safetensors").exists()


def test_the_public_names_are_those_of_the_wheel(project: tuple[Path, dict[str, str]]) -> None:
    folder, environment = project
    code = (
        "import lexloom; print(lexloom.__file__); print(lexloom.__version__);"
        " [getattr(lexloom, name) for name in lexloom.__all__]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, number = done.stdout.split()
    assert Path(file).is_relative_to(folder.parent)
    assert number == version("lexloom")
