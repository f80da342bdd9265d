"""The token of a Ray runtime on this machine: anyone with it can run code as this user."""

import os
import secrets
from collections.abc import MutableMapping
from pathlib import Path


def protect_token(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make `~/.ray/auth_token` readable only by its owner, creating it if needed.

    Ray itself would create it world-readable. Do nothing if RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH is set. If
    the home directory is not writable, set RAY_AUTH_TOKEN to a random token.
    """
    if environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"):
        return
    file = Path.home() / ".ray" / "auth_token"
    token = secrets.token_hex(32)
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    except FileExistsError:
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
    except OSError:
        environment["RAY_AUTH_TOKEN"] = token
