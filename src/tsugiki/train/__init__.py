"""One run: its settings (`config`), the run itself (`run`), and what it is made of.

This package is also the function `tsugiki.train(…)`, which is `tsugiki.functions.train`: an attribute of `tsugiki` with
the name of a package of it is that package as soon as any module of it has been imported, so the package can be called.
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
