"""Model cards: their code is run as it stands, so that what they say of other libraries is true."""

import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_card(folder: Path, replace: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    """Runs all Python of a folder's card, with `given` names; returns the names that it leaves.

    The folder's name is filled in, and what `replace` names is replaced.
    """
    code = "\n".join(BLOCK.findall((folder / "README.md").read_text()))
    for old, new in {**(replace or {}), "this folder": str(folder)}.items():
        assert old in code, f"the card does not say {old!r}"
        code = code.replace(old, new)
    names = dict(given)
    exec(code, names)
    return names
