"""Replaces slow libraries with placeholders while a process imports modules only to read their parameters.

`lexloom word2vec --help` needs the flow's config, whose modules also define the stages. They import PyTorch,
Numba and Prefect, which takes seconds, but use them only when a stage runs.
"""

import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

SLOW = ("prefect", "torch", "numba", "llvmlite", "tiktoken", "tokenizers", "transformers")


class AnyType(ABCMeta):
    """The type of classes that have every attribute, and can be base classes, annotations and decorators."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder

    def __getitem__(cls, parameters: Any) -> Any:
        return cls

    def __call__(cls, *given: Any, **options: Any) -> Any:
        decorates = len(given) == 1 and isinstance(given[0], FunctionType)
        return given[0] if decorates else Placeholder


class Placeholder(metaclass=AnyType):
    """Stands in for everything in a slow library."""


class PlaceholderModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(Placeholder, name)


class PlaceholderFinder(MetaPathFinder, Loader):
    """Provides placeholders for the modules of slow libraries."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in SLOW else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def placeholders() -> Iterator[None]:
    """Import placeholders instead of slow libraries inside the block, which must not call these libraries."""
    finder = PlaceholderFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
