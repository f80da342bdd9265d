"""Versions of the packages that results depend on."""

from importlib.metadata import PackageNotFoundError, version

RECORDED_PACKAGES = (
    "lexloom",
    "numba",
    "numpy",
    "prefect",
    "pyarrow",
    "ray",
    "scikit-learn",
    "tokenizers",
    "torch",
    "transformers",
)


def package_versions(*more: str) -> dict[str, str]:
    """Return the installed versions of the packages that results depend on, and of `more`."""
    versions = {}
    for name in sorted({*RECORDED_PACKAGES, *more}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
