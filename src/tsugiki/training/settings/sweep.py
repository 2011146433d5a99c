"""The settings of a sweep, from a YAML file and from flags: several runs, named one by one or the points of a grid.

This module is imported for the help of commands.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.errors import TsugikiError, error_text
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
"""The largest number of runs of a sweep."""

_LORA_FIELDS = frozenset(field.name for field in fields(LoraConfig))


class SweepConfig(BaseModel):
    """The settings of `tsugiki sweep`: those of all runs, and what differs between them, as `methods` or as `grid`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, About(first=True)] = Field(min_length=1)
    """Base model: 'embedded', a model folder, a GGUF file, or the id of a model on the hub."""
    data: Annotated[DataSetting, About(first=True)]
    """Training data, as for `tsugiki train`; can be repeated."""
    out: Annotated[str, About(first=True)] = Field(min_length=1)
    """Folder of the runs. Each run gets a folder in it."""
    settings: dict[str, Any] = {}
    """Settings of `tsugiki train` that all runs share."""
    methods: dict[str, dict[str, Any]] = Field({}, max_length=MAX_RUNS)
    """Name -> settings of this run only, such as `method`, `lora` and `learning_rate`."""
    grid: dict[str, list[Any]] = {}
    """Setting -> values. Axes are settings of `lora` (`r`, `lora_alpha`, `target_modules`, …) and `learning_rate`."""

    def runs(self) -> dict[str, tuple[dict[str, Any], RunConfig]]:
        """Return name -> (values of the point of the grid, settings of its run); without a grid there are no values.

        The last axis of a grid changes fastest.
        """
        if bool(self.methods) == bool(self.grid):
            raise TsugikiError(
                "give either methods, a name and settings for each run, or grid, a list of values for each setting, "
                "such as r: [1, 2, 4, 8]"
            )
        if self.grid:
            return self._points()
        return {name: ({}, self._method(name, settings)) for name, settings in self.methods.items()}

    def _method(self, name: str, settings: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a named run. One that must be the same for all is an error."""
        _check_folder_name(name, "methods")
        shared = [key for key in settings if key not in _PER_METHOD and key in RunConfig.model_fields]
        if shared:
            raise TsugikiError(
                "methods.{name}: {shared} must be the same for all methods, so that they can be compared; set "
                "it under settings",
                name=error_text(name, 100),
                shared=", ".join(shared),
            )
        return self._run(f"methods.{name}", name, settings)

    def _points(self) -> dict[str, tuple[dict[str, Any], RunConfig]]:
        for axis, values in self.grid.items():
            if not values:
                raise TsugikiError(
                    "grid.{axis} has no values; give each axis a list, such as r: [1, 2, 4, 8]",
                    axis=error_text(axis, 100),
                )
            if axis not in _LORA_FIELDS | {"learning_rate"}:
                known = ", ".join(sorted(_LORA_FIELDS))
                raise TsugikiError(
                    "grid.{axis}: no such axis; known are learning_rate, {known}",
                    axis=error_text(axis, 100),
                    known=known,
                )
        count = math.prod(map(len, self.grid.values()))
        if count > MAX_RUNS:
            raise TsugikiError(
                "the grid has {count:,} points, more than {max_runs:,}; remove some values",
                count=count,
                max_runs=MAX_RUNS,
            )
        runs = {}
        for combination in product(*self.grid.values()):
            point = dict(zip(self.grid, combination, strict=True))
            name = " ".join(f"{axis}={_plain(value)}" for axis, value in point.items())
            _check_folder_name(name, "grid")
            if name in runs:
                raise TsugikiError("grid: {name} occurs twice; remove one", name=error_text(name, 100))
            runs[name] = (point, self._point(name, point))
        return runs

    def _point(self, name: str, point: Mapping[str, Any]) -> RunConfig:
        shared = self.settings.get("lora", {})
        if not isinstance(shared, dict):
            raise TsugikiError(
                "settings.lora is {shared}; it must contain settings, such as r: 8",
                shared=error_text(repr(shared), 100),
            )
        lora = {**shared, **{key: value for key, value in point.items() if key in _LORA_FIELDS}}
        others = {key: value for key, value in point.items() if key not in _LORA_FIELDS}
        return self._run(f"grid, {name}", name, {**others, "lora": lora, "method": "lora"})

    def _run(self, where: str, name: str, settings: Mapping[str, Any]) -> RunConfig:
        """Return the settings of one run: those of all runs, then its own.

        `where` is its place in the YAML file, for errors; `name` is the name of its folder as well.
        """
        shared = {"model": self.model, "data": self.data, "out": str(Path(self.out) / name)}
        # Runs that are compared have the same number of steps, so none ends early unless the settings say so.
        return validated(
            RunConfig, {"patience": 0, **self.settings, **settings, **shared}, Path(error_text(where, 100))
        )


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_folder_name(name: str, where: str) -> None:
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name:
        shown = error_text(repr(name), 100)
        raise TsugikiError(
            "{where}: {shown} cannot be the name of a folder, which the run needs; rename it", where=where, shown=shown
        )
