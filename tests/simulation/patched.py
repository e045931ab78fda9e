"""Loads dstore with the changes of the mutant in ``$DSTORE_MUTANT``. Also a pytest plugin."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from tests.simulation.mutant import module_of
from tests.simulation.mutants import MUTANTS, Mutant

VARIABLE = "DSTORE_MUTANT"


def source(mutant: Mutant, module: str, text: str) -> str:
    """The source of ``module`` with the mutant's changes."""
    for name, old, new in mutant.edits:
        if module_of(name) == module:
            if text.count(old) != 1:
                raise ValueError(
                    f"{mutant.name}: found {text.count(old)} times in {module}, not once:\n{old}"
                )
            text = text.replace(old, new)
    return text


class _Loader(importlib.machinery.SourceFileLoader):
    mutant: Mutant

    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        if not path.endswith(".py"):
            raise OSError("compiled code does not have the changes")
        return source(self.mutant, self.name, data.decode()).encode()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._modules = {module_of(name) for name, _, _ in mutant.edits}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
            spec.loader.mutant = self._mutant
        return spec


def install(name: str) -> None:
    """Apply the mutant named so to all modules that are imported from now on."""
    (mutant,) = (each for each in MUTANTS if each.name == name)
    early = ("dstore.core", "tests.simulation.cluster")
    loaded = [module for module in sys.modules if module.startswith(early)]
    if loaded:
        raise RuntimeError(f"too late: {loaded} are imported")
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, _Finder(mutant))


if os.environ.get(VARIABLE):
    install(os.environ[VARIABLE])
