"""What some tests drive and a machine may lack. There they are skipped; where CI=true, they fail instead."""

import os
import shutil
from glob import glob
from typing import NoReturn

import pytest

DEBIAN_POSTGRES = "/usr/lib/postgresql/*/bin"  # not on the PATH


def missing(what: str) -> NoReturn:
    """Ends a test for want of something."""
    if in_ci():
        pytest.fail(f"{what}; and CI skips nothing")
    pytest.skip(what)


def in_ci() -> bool:
    return os.environ.get("CI") == "true"


def is_installed(program: str) -> bool:
    folders = [os.environ["PATH"], *glob(DEBIAN_POSTGRES)]
    return shutil.which(program, path=os.pathsep.join(folders)) is not None
