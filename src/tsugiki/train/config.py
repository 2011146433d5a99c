"""The settings of a run: a YAML file, flags, or both.

The defaults are those of the textbook chapter on LoRA that the project implements, called "the chapter" here.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tsugiki.data.records import AssistantTurns
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig

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
    warmup_steps: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Steps of rising learning rate; below 1, a share of all steps."""
    decay_steps: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Steps of falling learning rate at the end of `warmup_stable_decay`, which falls linearly; below 1, a share."""
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
    arithmetic: Literal["bf16", "fp32"] | None = None
    """Where every weight trains: what products are computed in; unsaid, bf16 where the processor multiplies it.
    Weights and optimiser are float32 either way."""
    stored: Literal["float32", "float16", "bfloat16"] = "float32"
    """Where every weight trains: the type of the model's file at the end; checkpoints are float32."""

    held_out: float | Annotated[str, Field(min_length=1)] = 0.1
    """What is measured and never learned: a share of the text, `field=value` of the records, or a file."""
    assistant_turns: AssistantTurns = "all"
    """Which turns of a conversation's assistant are learned: all, or the last."""
    held_out_characters: int = Field(default=20_000, ge=1)
    """At most about so many held-out characters are scored, in windows spread evenly."""
    own_text: str | None = Field(default=None, min_length=1)
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
        if (self.lr_scheduler_type == "warmup_stable_decay") != (self.decay_steps is not None):
            raise ValueError("decay_steps goes with lr_scheduler_type warmup_stable_decay, and it with decay_steps")
        return self


_USELESS = {"full": ("lora", "frozen"), "lora": ("arithmetic", "stored")}


class RunConfig(TrainingSettings):
    """What `tsugiki train` does."""

    model: str = Field(min_length=1)
    """`embedded`, a folder, or a hub id."""
    method: Literal["lora", "full"] = "lora"
    """An adapter, or every weight."""
    frozen: Literal["bf16", "fp32", "int8"] | None = None
    """Of method lora: what the frozen base is held and multiplied in; unsaid, bf16 where the processor multiplies it.
    A and B, and what else trains, are float32 in any case."""
    lora: Annotated[LoraConfig, BeforeValidator(_with_chapter_defaults)] = LoraConfig(**CHAPTER_LORA)  # type: ignore[arg-type]
    """Of method lora."""

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Self:
        # What a method has no use for would be ignored.
        useless = _USELESS[self.method]
        given = [name for name in useless if name in self.model_fields_set and getattr(self, name) is not None]
        if given:
            raise ValueError(f"{', '.join(given)}: no setting of method {self.method}; leave it out")
        if self.frozen not in (None, "fp32") and (self.lora.modules_to_save or self.lora.bias != "none"):
            raise ValueError(
                f"frozen {self.frozen} goes with pairs alone: with modules_to_save or bias, parts of the base train, "
                "in float32; say frozen fp32, or nothing"
            )
        return self

    def recorded(self) -> dict[str, Any]:
        """The settings that the run follows, as JSON has them."""
        return self.model_dump(mode="json", exclude=set(_USELESS[self.method]))


Settings = TypeVar("Settings", bound=BaseModel)


def load_config(path: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """The settings from a YAML file (or none), with `overrides` (nested as in the file) on top.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    given = read_yaml(path) if path is not None else {}
    lora = given.get("lora") or {}
    if not isinstance(lora, dict):
        raise TsugikiError(f"{path}: lora is {lora!r}; it should hold settings such as r and lora_alpha")
    lora = {**lora, **overrides.pop("lora", {})}
    return validated(RunConfig, {**given, **overrides, **({"lora": lora} if lora else {})}, path)


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
        raise TsugikiError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
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
        problems.append(f"{where}: {message.lower()}{given}" if where else message)
    return f"{path or 'settings'}: {'; '.join(problems)}"
