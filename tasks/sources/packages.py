"""Texts, models and tables inside installed Python packages."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def find_installed(distribution: str, module: str) -> tuple[Path, str] | None:
    """Return the folder of a package's module and the package's version; None if it is not installed."""
    spec = find_spec(module)
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]), installed
