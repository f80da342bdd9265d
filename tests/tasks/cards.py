"""Runs the code of model cards, so that what they say about other libraries is tested."""

import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_card(folder: Path, replace: dict[str, str] | None = None, **given: Any) -> dict[str, Any]:
    """Run all Python code of a folder's card with the `given` names; return the resulting names.

    The folder's name is filled in, and `replace` is applied to the code.
    """
    code = "\n".join(BLOCK.findall((folder / "README.md").read_text()))
    for old, new in {**(replace or {}), "this folder": str(folder)}.items():
        assert old in code, f"the card does not say {old!r}"
        code = code.replace(old, new)
    names = dict(given)
    exec(code, names)
    return names
