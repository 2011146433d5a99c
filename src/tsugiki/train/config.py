"""The settings of a run: a YAML file, flags, or both.

The defaults are those of the textbook chapter on LoRA that the project implements, called "the chapter" here.
"""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tsugiki.data.records import AssistantTurns
from tsugiki.dtypes import BaseDtype, ComputeDtype, SaveDtype
from tsugiki.errors import TsugikiError, error_text
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import METHODS

CHAPTER_LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}
"""The chapter's adapter; what a config does not say of `lora` comes from here."""


def _with_chapter_defaults(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    known = {field.name for field in fields(LoraConfig)}
    unknown = ", ".join(key for key in given if key not in known)
    if unknown:
        raise ValueError(f"{unknown}: no such setting; known are {', '.join(sorted(known))}")
    return {**CHAPTER_LORA, **given}


class TrainingSettings(BaseModel):
    """What every kind of training is told. Names are those of transformers' `TrainingArguments` where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(min_length=1)
    """A `.txt`, `.jsonl`, `.csv` or `.parquet` file, a folder of these, or the hub id of a dataset."""
    out: str = Field(min_length=1)
    """The run's folder; what was trained is in it afterwards."""

    epochs: float = Field(default=3, gt=0, le=10_000, allow_inf_nan=False)
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; wins over `epochs`."""
    batch_size: int = Field(default=4, ge=1)
    """Rows at once."""
    grad_accum: int = Field(default=4, ge=1)
    """Batches an optimiser step."""
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    lr_scheduler_type: str = "linear"
    """The name of a schedule of transformers, such as `linear`, `cosine` or `warmup_stable_decay`."""
    warmup_steps: int | None = Field(default=None, ge=1)
    """Steps over which the learning rate rises to its peak. Overrides `warmup_ratio`."""
    warmup_ratio: float = Field(default=0, ge=0, lt=1)
    """The same as a share of all steps."""
    decay_steps: int | None = Field(default=None, ge=1)
    """With `warmup_stable_decay`: steps at the end over which the learning rate falls linearly to 0."""
    decay_ratio: float | None = Field(default=None, gt=0, lt=1)
    """The same as a share of all steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes the matrices inside the layers, AdamW the rest."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    weight_decay: float = Field(default=0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1, ge=0, allow_inf_nan=False)
    block_size: int | None = Field(default=None, ge=2)
    """Tokens a row; 512, or the model's context where that is shorter."""
    seed: int = Field(default=42, ge=0)
    base_dropout: bool = False
    """Leave dropout inside the model on."""
    compute_dtype: ComputeDtype | None = None
    """Where every weight trains: what products are computed in; unsaid, bf16 where the processor multiplies it.
    Weights and optimiser are float32 either way."""
    save_dtype: SaveDtype = "fp32"
    """Where every weight trains: the type of the model's file at the end; checkpoints are float32."""

    held_out: float | Annotated[str, Field(min_length=1)] = 0.1
    """What is measured and never learned: a share of the text, `field=value` of the records, or a file."""
    assistant_turns: AssistantTurns = "all"
    """Which turns of a conversation's assistant are learned: all, or the last."""
    held_out_characters: int = Field(default=20_000, ge=1)
    """At most about so many held-out characters are scored, in windows spread evenly."""
    retention_data: str | None = Field(default=None, min_length=1)
    """Text of the kind that the base was made from, as files: measured before and after, for what training forgets."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Steps between measurements; a fifth of the run."""
    save_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; a tenth of the run."""
    prompts: tuple[str, ...] = ()
    """Continued before the first step, every `sample_steps`, and at the end."""
    sample_steps: int | None = Field(default=None, ge=1)
    """Steps between samples; half the run."""
    sample_tokens: int = Field(default=80, ge=1)
    report_to: tuple[str, ...] = ()
    """Logging integrations of transformers, such as `tensorboard`."""

    @model_validator(mode="after")
    def _decay_fits_the_schedule(self) -> Self:
        given = [name for name in ("decay_steps", "decay_ratio") if getattr(self, name) is not None]
        if len(given) != (self.lr_scheduler_type == "warmup_stable_decay"):
            raise ValueError(
                "lr_scheduler_type warmup_stable_decay requires either decay_steps or decay_ratio, and other schedules "
                f"allow neither (got {' and '.join(given) or 'neither'} with {self.lr_scheduler_type})"
            )
        return self

    def overridden(self) -> set[str]:
        """Return the names of settings that have no effect because another one overrides them."""
        return set() if self.warmup_steps is None else {"warmup_ratio"}


LORA_PLUS = "lora+"
"""The method that is LoRA with a learning rate of its own for B."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_ADAPTERS_HAVE_NO = ("compute_dtype", "save_dtype")


def validate_method(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is no method's; the message says the nearest.
    """
    if name in METHODS:
        return name
    near = get_close_matches(name, METHODS, n=1, cutoff=0.5)
    raise ValueError(f"no such method{f'; did you mean {near[0]}?' if near else ''} (`tsugiki methods` lists them)")


class RunConfig(TrainingSettings):
    """What `tsugiki train` does."""

    model: str = Field(min_length=1)
    """`embedded`, a folder, or a hub id."""
    method: Annotated[str, AfterValidator(validate_method)] = "lora"
    """An adapter, by a name of `tsugiki methods`; or `full`, every weight."""
    base_dtype: BaseDtype | None = None
    """Of an adapter: what the frozen base is held and multiplied in; unsaid, bf16 where the processor multiplies it.
    What trains is float32 in any case."""
    lora: Annotated[LoraConfig, BeforeValidator(_with_chapter_defaults)] = LoraConfig(**CHAPTER_LORA)  # type: ignore[arg-type]
    """Of the methods that are LoRA's."""
    loraplus_lr_ratio: float = Field(default=16, gt=0, allow_inf_nan=False)
    """Of method lora+: the learning rate of B over that of A, which is `learning_rate`."""
    method_config: dict[str, Any] = {}
    """Settings of any other method, as `tsugiki methods NAME` lists them."""

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_method(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "learning_rate" in given or str(given.get("method")) not in METHODS:
            return given
        return {**given, "learning_rate": METHODS[given["method"]].learning_rate}

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Self:
        # What a method has no use for would be ignored.
        given = [name for name in self._inapplicable_fields() if name in self.model_fields_set and getattr(self, name)]
        if given:
            raise ValueError(f"{', '.join(given)}: no setting of method {self.method}; leave it out")
        if self.method == LORA_PLUS and self.optimizer != "adamw":
            raise ValueError(f"method {LORA_PLUS} goes with optimizer adamw; leave {self.optimizer} out")
        _ = self.adapter_config
        if self.base_dtype not in (None, "fp32") and self.trains_base_parameters():
            raise ValueError(
                f"base_dtype {self.base_dtype} requires that no parameter of the base trains; with these settings some "
                "do, in float32: set base_dtype to fp32 or leave it out"
            )
        return self

    @cached_property
    def adapter_config(self) -> Any:
        """The config of the adapter that the method trains, such as a `LoraConfig`.

        Raises:
            ValueError: no such method, or settings that it does not have.
        """
        method = METHODS[self.method]
        try:
            return method.configure(_non_defaults(self.lora) if method.config is LoraConfig else self.method_config)
        except TsugikiError as error:
            raise ValueError(str(error)) from error

    def trains_base_parameters(self) -> bool:
        """Return whether parameters of the base (or copies of them) train, and not only parameters that are added."""
        config = self.adapter_config
        return bool(METHODS[self.method].trains_base_weights or getattr(config, "modules_to_save", None)) or (
            getattr(config, "bias", "none") != "none"
        )

    def to_record(self) -> dict[str, Any]:
        """The settings that the run follows, as JSON has them."""
        return self.model_dump(mode="json", exclude={*self._inapplicable_fields(), *self.overridden()})

    def _inapplicable_fields(self) -> tuple[str, ...]:
        method = METHODS[self.method]
        ratio = () if self.method == LORA_PLUS else ("loraplus_lr_ratio",)
        if not method.trains_adapter:
            return ("lora", "method_config", "base_dtype", *ratio)
        return (*_ADAPTERS_HAVE_NO, "method_config" if method.config is LoraConfig else "lora", *ratio)


def _non_defaults(lora: LoraConfig) -> dict[str, Any]:
    """What differs from the defaults, which a method may decide otherwise."""
    defaults = vars(LoraConfig())
    return {name: value for name, value in vars(lora).items() if value != defaults[name]}


Settings = TypeVar("Settings", bound=BaseModel)


def load_config(path: Path | None, overrides: dict[str, Any], of_the_method: Mapping[str, Any] = _NOTHING) -> RunConfig:
    """The settings from a YAML file (or none), with others on top.

    Args:
        path: the file.
        overrides: settings, nested as in the file.
        of_the_method: settings of whatever method it is, which are `lora`'s or `method_config`'s.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    given = read_yaml(path) if path is not None else {}
    method = METHODS.get(str(overrides.get("method", given.get("method", "lora"))))
    own = "lora" if method is not None and method.config is LoraConfig else "method_config"
    overrides[own] = {**overrides.get(own, {}), **of_the_method}
    for section in ("lora", "method_config"):
        inner = given.pop(section, None) or {}
        if not isinstance(inner, dict):
            raise TsugikiError(f"{path}: {section} is {inner!r}; it should hold settings, such as r of lora")
        inner = {**inner, **overrides.pop(section, {})}
        if method is not None and section == own:
            method.check_fixed_settings(inner)
        given |= {section: inner} if inner else {}
    return validated(RunConfig, {**given, **overrides}, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a file, not yet looked at.

    Raises:
        TsugikiError: no such file, no YAML, or no settings in it.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TsugikiError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TsugikiError(f"{path} is not YAML: {error_text(error)}") from error
    if not isinstance(loaded, dict):
        raise TsugikiError(f"{path} holds no settings; it should say model, data and out at least")
    return loaded


def validated(kind: type[Settings], given: dict[str, Any], path: Path | None) -> Settings:
    """Settings of a kind; `path` is for the error.

    Raises:
        TsugikiError: an unknown setting, one that is missing, or a value that cannot be.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise TsugikiError(_one_line(error, path)) from error


def _one_line(error: ValidationError, path: Path | None) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        whole = problem["type"] in ("missing", "extra_forbidden") or not where
        given = "" if whole else f" (got {problem['input']!r})"
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {message[:1].lower()}{message[1:]}{given}" if where else message)
    return f"{path or 'settings'}: {'; '.join(problems)}"
