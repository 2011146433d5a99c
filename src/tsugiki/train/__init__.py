"""Training runs: their settings (`config`), the run itself (`run`), and its parts.

This package can be called as `tsugiki.train(…)`, which is `tsugiki.functions.train`. A function with this name would
not suffice: Python replaces the attribute `tsugiki.train` by the package when it imports a module of the package.
"""

import sys
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    def __call__(self, **settings: Any) -> Any:
        return import_module("tsugiki.functions").train(**settings)

    @property
    def __signature__(self) -> Signature:
        return signature(import_module("tsugiki.functions").train)


sys.modules[__name__].__class__ = _CallableModule
