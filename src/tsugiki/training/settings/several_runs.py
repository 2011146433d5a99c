"""The settings of comparisons and sweeps, from YAML files and from flags.

A file of settings describes several runs. This module is imported for the help of commands.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.training.settings.config import DataSetting, RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.settings.setting import About

_PER_METHOD = (
    *("method", "lora", "method_config", "learning_rate", "loraplus_lr_ratio"),
    *("weight_decay", "base_dropout", "compute_dtype", "save_dtype"),
)
"""Settings that may differ between methods. All others are the same, so that the methods can be compared."""

MAX_RUNS = 1000
"""The largest number of runs of a comparison or a sweep."""

_LORA_FIELDS = frozenset(field.name for field in fields(LoraConfig))


class _SeveralRuns(BaseModel):
    """The settings that all runs of a comparison or of a sweep share."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, About(first=True)] = Field(min_length=1)
    """Base model: 'embedded', a model folder, a GGUF file, or the id of a model on the hub."""
    data: Annotated[DataSetting, About(first=True)]
    """Training data, as for `tsugiki train`; can be repeated."""
    out: Annotated[str, About(first=True)] = Field(min_length=1)
    """Folder of the runs. Each run gets a folder in it."""
    settings: dict[str, Any] = {}
    """Settings of `tsugiki train` that all runs share."""

    def _run(self, where: str, name: str, settings: Mapping[str, Any]) -> RunConfig:
        """Return the settings of one run: those of all runs, then its own.

        `where` is its place in the YAML file, for errors; `name` is the name of its folder as well.
        """
        shared = {"model": self.model, "data": self.data, "out": str(Path(self.out) / name)}
        # Runs that are compared have the same number of steps, so none ends early unless the settings say so.
        return validated(
            RunConfig, {"patience": 0, **self.settings, **settings, **shared}, Path(error_text(where, 100))
        )


class ComparisonConfig(_SeveralRuns):
    """The settings of `tsugiki compare`."""

    methods: dict[str, dict[str, Any]] = Field(min_length=1, max_length=MAX_RUNS)
    """Name -> settings of this method only, such as `method`, `lora` and `learning_rate`."""

    def runs(self) -> dict[str, RunConfig]:
        """Return name -> settings of its run. A setting that must be the same for all methods is an error in one."""
        runs = {}
        for name, settings in self.methods.items():
            _check_folder_name(name, "methods")
            shared = [key for key in settings if key not in _PER_METHOD and key in RunConfig.model_fields]
            if shared:
                message = _(
                    "methods.{name}: {shared} must be the same for all methods, so that they can be compared; set "
                    "it under settings"
                )
                raise TsugikiError(message.format(name=error_text(name, 100), shared=", ".join(shared)))
            runs[name] = self._run(f"methods.{name}", name, settings)
        return runs


class SweepConfig(_SeveralRuns):
    """The settings of `tsugiki sweep`."""

    grid: dict[str, list[Any]]
    """Setting -> values. Axes are settings of `lora` (`r`, `lora_alpha`, `target_modules`, …) and `learning_rate`."""

    def runs(self) -> dict[str, tuple[dict[str, Any], RunConfig]]:
        """Return name -> (values of the point, settings of its run); the last axis changes fastest."""
        empty = [axis for axis, values in self.grid.items() if not values]
        if not self.grid or empty:
            where = _("grid.{axis} has no values").format(axis=empty[0]) if empty else _("the grid is empty")
            raise TsugikiError(_("{where}; give each axis a list, such as r: [1, 2, 4, 8]").format(where=where))
        for axis in self.grid:
            if axis not in _LORA_FIELDS | {"learning_rate"}:
                known = ", ".join(sorted(_LORA_FIELDS))
                message = _("grid.{axis}: no such axis; known are learning_rate, {known}")
                raise TsugikiError(message.format(axis=error_text(axis, 100), known=known))
        count = math.prod(map(len, self.grid.values()))
        if count > MAX_RUNS:
            message = _("the grid has {count:,} points, more than {max_runs:,}; remove some values")
            raise TsugikiError(message.format(count=count, max_runs=MAX_RUNS))
        runs = {}
        for values in product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            name = " ".join(f"{axis}={_plain(value)}" for axis, value in point.items())
            _check_folder_name(name, "grid")
            if name in runs:
                raise TsugikiError(_("grid: {name} occurs twice; remove one").format(name=error_text(name, 100)))
            runs[name] = (point, self._point(name, point))
        return runs

    def _point(self, name: str, point: Mapping[str, Any]) -> RunConfig:
        shared = self.settings.get("lora", {})
        if not isinstance(shared, dict):
            message = _("settings.lora is {shared}; it must contain settings, such as r: 8")
            raise TsugikiError(message.format(shared=error_text(repr(shared), 100)))
        lora = {**shared, **{key: value for key, value in point.items() if key in _LORA_FIELDS}}
        others = {key: value for key, value in point.items() if key not in _LORA_FIELDS}
        return self._run(f"grid, {name}", name, {**others, "lora": lora, "method": "lora"})


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_folder_name(name: str, where: str) -> None:
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name:
        shown = error_text(repr(name), 100)
        message = _("{where}: {shown} cannot be the name of a folder, which the run needs; rename it")
        raise TsugikiError(message.format(where=where, shown=shown))
