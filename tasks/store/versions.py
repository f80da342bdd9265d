"""The versions of the packages that a result depends on."""

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
    """The versions of the packages that results depend on, and of `more`: of those that are installed."""
    versions = {}
    for name in sorted({*RECORDED_PACKAGES, *more}):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
