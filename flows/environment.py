"""Environment variables that a command sets before Prefect, Ray and Numba are imported."""

import logging
import os
import stat
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

QUIET_LIBRARIES = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "TQDM_DISABLE": "1",
}
SERVER_START_SECONDS = 120


def configure_environment(verbose: bool) -> None:
    """Silence the libraries, disable their usage statistics, and move their files if HOME is not writable."""
    quiet = {"LEXLOOM_VERBOSE": "1"} if verbose else QUIET_LIBRARIES
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SERVER_START_SECONDS),
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **quiet,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    move_from_unwritable_home()
    if not verbose:
        warnings.simplefilter("ignore")
        logging.getLogger("EventsWorker").setLevel(logging.CRITICAL)  # Prefect's, outside of its own settings
        logging.getLogger("lexloom").setLevel(logging.WARNING)


def move_from_unwritable_home() -> None:
    """Use a temporary folder for Prefect's records and Numba's compiled code if theirs is not writable.

    Folders that the user has configured are not changed. A warning names the folder of Prefect's records.
    """
    home = Path(os.path.expanduser("~"))
    places = {"PREFECT_HOME": home / ".prefect", "NUMBA_CACHE_DIR": home / ".cache" / "numba"}
    moved = [name for name, place in places.items() if name not in os.environ and not is_writable(place)]
    if "NUMBA_CACHE_DIR" in moved and is_writable(package_folder()):
        moved.remove("NUMBA_CACHE_DIR")  # Numba first tries to cache next to the code
    if not moved:
        return
    folder = private_folder()
    for name in moved:
        os.environ[name] = str(folder / name.lower())
    if "PREFECT_HOME" in moved:
        print(
            f"warning: {home} is not writable, so run records are stored in {folder}: set PREFECT_HOME to a"
            " persistent folder",
            file=sys.stderr,
        )


def is_writable(folder: Path) -> bool:
    """Return whether a folder, or the nearest parent that exists, can be written to."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def package_folder() -> Path:
    spec = find_spec("lexloom.models")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def private_folder() -> Path:
    """Return a private temporary folder; commands of a user share it unless its owner or mode is unsafe."""
    folder = Path(tempfile.gettempdir()) / f"lexloom-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
            return Path(tempfile.mkdtemp(prefix="lexloom-"))
    return folder
