"""The token of a Ray runtime on this machine: whoever has it may run code as this user."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def protect_token(environment: Mapping[str, str] = os.environ) -> None:
    """Make sure that only this user can read the token that Ray keeps in the home folder.

    Ray makes the file when there is none, readable by all users of the machine. Nothing is done where
    RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH names another token.
    """
    if environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_hex(32))
