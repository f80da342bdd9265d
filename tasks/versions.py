"""The versions of the packages that a result depends on."""

from importlib.metadata import PackageNotFoundError, version

RECORDED_PACKAGES = ("lexloom", "numba", "numpy", "prefect", "pyarrow", "ray", "torch")


def package_versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
