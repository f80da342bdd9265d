"""What the product imports comes with what pyproject.toml asks for: a clean install must have it."""

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("deployments", "flows", "models", "tasks", "training")
WITH_A_GPU = {"triton"}  # torch for CUDA brings it; without it models/word2vec/triton.py is not imported


def installed_by(requirements: list[str]) -> set[str]:
    """The distributions that are asked for, and those that they ask for in turn."""
    waiting, seen = [Requirement(each) for each in requirements], set[tuple[str, str]]()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            try:
                needs = [Requirement(each) for each in requires(name) or []]
            except PackageNotFoundError:  # of another platform or Python
                continue
            waiting += [need for need in needs if not need.marker or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def imported_at_start(path: Path) -> set[str]:
    """Packages that importing the file imports: not those inside of functions, which extras may bring."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_every_package_that_a_file_imports_is_installed_with_the_product():
    asked = list(PROJECT["project"]["dependencies"])
    for name, needed in PROJECT["project"]["optional-dependencies"].items():
        if name not in ("dev", "bench"):  # nobody's who uses the product
            asked += [each for each in needed if not each.startswith("lexloom[")]
    installed = installed_by(asked)
    distributions = packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}: {package}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for package in imported_at_start(path) - {"lexloom", *WITH_A_GPU, *sys.stdlib_module_names}
        if not installed & {canonicalize_name(name) for name in distributions.get(package, [package])}
    }
    assert not missing, "in pyproject.toml's dependencies"
