"""The registry of flows, which the command line, the deployments and the reports use.

A flow is a module of this folder that defines a Prefect flow of the same name: `flows/window_lm.py` defines
`window_lm(config)`, which is `lexloom window-lm`. Another package adds a flow with an entry point:

    [project.entry-points."lexloom.flows"]
    lstm-lm = "my_package.flows.lstm_lm"

Flows are listed without importing them, since Prefect takes seconds to import.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from pydantic import BaseModel

from lexloom.models.registry import module_file, other_entries

GROUP = "lexloom.flows"


@dataclass(frozen=True)
class FlowEntry:
    """A flow: its name on the command line, and the module that defines it.

    Attributes:
        name: the name of the Prefect flow, the deployment and the command, such as "window-lm".
        module: the dotted name of its module, whose last part is the flow function's name.
    """

    name: str
    module: str

    @property
    def function(self) -> str:
        return self.module.rpartition(".")[2]

    @property
    def entrypoint(self) -> str:
        """The entrypoint of the Prefect deployment, such as "lexloom.flows.word2vec.word2vec"."""
        return f"{self.module}.{self.function}"

    @property
    def purpose(self) -> str:
        """The first sentence of the module's docstring, read without importing the module."""
        docstring = ast.get_docstring(parse(module_file(self.module, f"the flow {self.name}"))) or ""
        return docstring.partition("\n")[0].rstrip(".")

    def load(self) -> ModuleType:
        """Import and return the flow's module."""
        return import_module(self.module)

    def flow(self) -> Callable[[Any], Any]:
        """Import and return the Prefect flow."""
        found: Callable[[Any], Any] = getattr(self.load(), self.function)
        return found

    def config(self) -> "type[BaseModel]":
        """Import and return the class of the flow's only parameter, `config`."""
        function = getattr(self.flow(), "fn", self.flow())
        found: type[BaseModel] = get_type_hints(function)["config"]
        return found


@cache
def flows() -> dict[str, FlowEntry]:
    """Return the flows by name: the built-in ones first, then those of other packages.

    Raises:
        ValueError: another package registers a name that is already in use.
    """
    modules = sorted(path for path in Path(__file__).parent.glob("*.py") if defines_flow(path))
    found = {path.stem.replace("_", "-"): f"{__package__}.{path.stem}" for path in modules}
    found.update(other_entries(GROUP, found))
    return {name: FlowEntry(name, module) for name, module in found.items()}


def defines_flow(path: Path) -> bool:
    """Return whether a module defines a function that has the module's name and is decorated with `flow`."""
    functions = [node for node in parse(path).body if isinstance(node, ast.FunctionDef)]
    return any(
        function.name == path.stem and any("flow" in ast.unparse(each) for each in function.decorator_list)
        for function in functions
    )


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
