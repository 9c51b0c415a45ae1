"""Changing a module of the product just after it was loaded, whenever that is.

``after_import("mailstrom_workers.feed", arm)`` calls ``arm(module)`` once, when something imports
it, or now if it is loaded already. So a child process pays for no module that it does not use.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Arm = Callable[[ModuleType], object]

_wanted: dict[str, list[Arm]] = {}


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for arm in _wanted.pop(module.__name__, ()):
            arm(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _wanted:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def after_import(name: str, arm: Arm) -> None:
    """Have ``arm`` called with the module of this name once it is loaded."""
    if name in sys.modules:
        arm(sys.modules[name])
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _wanted.setdefault(name, []).append(arm)
