"""The settings of a comparison and of a sweep: one YAML file, from which the settings of every run follow."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.train.config import RunConfig, read_yaml, validated

_OWN = (
    *("method", "lora", "method_config", "learning_rate", "loraplus_lr_ratio", "optimizer"),
    *("weight_decay", "base_dropout", "compute_dtype", "save_dtype"),
)
"""What may differ from method to method; all else is the budget and the text, which they share."""

_LORA_FIELDS = frozenset(LoraConfig.__dataclass_fields__)


class ComparisonConfig(BaseModel):
    """What `tsugiki compare` does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    out: str = Field(min_length=1)
    """A folder; each method's run is a folder in it."""
    settings: dict[str, Any] = {}
    """Settings of `tsugiki train` that all runs share."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> what is the method's own: `method`, `lora`, `learning_rate` and such."""

    def runs(self) -> dict[str, RunConfig]:
        """The settings of each run, by the method's name.

        Raises:
            TsugikiError: a method with another budget than the others, or settings that cannot be.
        """
        runs = {}
        for name, own in self.methods.items():
            _refuse_folder_name(name)
            shared = [key for key in own if key not in _OWN and key in RunConfig.model_fields]
            if shared:
                raise TsugikiError(
                    f"methods.{name}: {', '.join(shared)} is the same for all methods, or they cannot be compared; "
                    "set it under settings"
                )
            given = {**self.settings, **own, "model": self.model, "data": self.data, "out": str(Path(self.out) / name)}
            runs[name] = validated(RunConfig, given, Path(f"methods.{name}"))
        return runs


class SweepConfig(BaseModel):
    """What `tsugiki sweep` does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    out: str = Field(min_length=1)
    """A folder; each run is a folder in it."""
    settings: dict[str, Any] = {}
    """Settings of `tsugiki train` that all runs share."""
    grid: dict[str, list[Any]]
    """Name -> values: settings of `lora` (`r`, `lora_alpha`, `target_modules`, …) or `learning_rate`."""

    def runs(self) -> dict[str, tuple[dict[str, Any], RunConfig]]:
        """Each point of the grid, the last axis changing fastest: name -> (its values, the settings of its run).

        Raises:
            TsugikiError: a grid without points, an axis that is none, or settings that cannot be.
        """
        empty = [axis for axis, values in self.grid.items() if not values]
        if not self.grid or empty:
            where = f"grid.{empty[0]} has no values" if empty else "the grid is empty"
            raise TsugikiError(f"{where}; give each axis a list, such as r: [1, 2, 4, 8]")
        for axis in self.grid:
            if axis not in _LORA_FIELDS | {"learning_rate"}:
                raise TsugikiError(f"grid.{axis}: no axis; known are learning_rate, {', '.join(sorted(_LORA_FIELDS))}")
        runs = {}
        for values in product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            name = " ".join(f"{axis}={_plain(value)}" for axis, value in point.items())
            if name in runs:
                raise TsugikiError(f"grid: {name} comes twice; take one out")
            runs[name] = (point, self._run(name, point))
        return runs

    def _run(self, name: str, point: Mapping[str, Any]) -> RunConfig:
        lora = {**self.settings.get("lora", {}), **{key: value for key, value in point.items() if key in _LORA_FIELDS}}
        rest = {key: value for key, value in point.items() if key not in _LORA_FIELDS}
        given = {**self.settings, **rest, "lora": lora, "method": "lora", "model": self.model, "data": self.data}
        return validated(RunConfig, {**given, "out": str(Path(self.out) / name)}, Path(f"grid, {name}"))


def load_comparison(path: Path, out: str | None, data: str | None = None) -> ComparisonConfig:
    """The comparison in a YAML file; `out` and `data` win over the file's.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    given = {name: value for name, value in (("out", out), ("data", data)) if value}
    return validated(ComparisonConfig, read_yaml(path) | given, path)


def load_sweep(path: Path, out: str | None) -> SweepConfig:
    """The sweep in a YAML file; `out` wins over the file's.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    return validated(SweepConfig, read_yaml(path) | ({"out": out} if out else {}), path)


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse_folder_name(name: str) -> None:
    if not name.strip() or name in (".", "..") or "/" in name or "\\" in name:
        raise TsugikiError(f"methods: {name!r} is no name for a folder, in which the method's run is to be; rename it")
