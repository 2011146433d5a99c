"""The settings of one run: a YAML file, flags, or both.

The defaults are those of the textbook chapter on LoRA that the project implements, called "the chapter" here.
"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

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


class RunConfig(BaseModel):
    """What `tsugiki train` does. Names are those of transformers' `TrainingArguments` where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    """`embedded`, a folder, or a hub id."""
    data: str = Field(min_length=1)
    """A `.txt`, `.jsonl`, `.csv` or `.parquet` file, a folder of these, or the hub id of a dataset."""
    out: str = Field(min_length=1)
    """The run's folder; it becomes an adapter folder."""
    method: Literal["lora"] = "lora"
    lora: Annotated[LoraConfig, BeforeValidator(_with_chapter_defaults)] = LoraConfig(**CHAPTER_LORA)  # type: ignore[arg-type]

    epochs: float = Field(default=3, gt=0, le=10_000, allow_inf_nan=False)
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; wins over `epochs`."""
    batch_size: int = Field(default=4, ge=1)
    """Rows at once."""
    grad_accum: int = Field(default=4, ge=1)
    """Batches an optimiser step."""
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    lr_scheduler_type: str = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1, ge=0, allow_inf_nan=False)
    block_size: int | None = Field(default=None, ge=2)
    """Tokens a row; 512, or the model's context where that is shorter."""
    seed: int = Field(default=42, ge=0)
    base_dropout: bool = False
    """Leave dropout inside the frozen base on."""

    held_out: float | Annotated[str, Field(min_length=1)] = 0.1
    """What is measured and never learned: a share of the text, `field=value` of the records, or a file."""
    assistant_turns: AssistantTurns = "all"
    """Which turns of a conversation's assistant are learned: all, or the last."""
    held_out_characters: int = Field(default=20_000, ge=1)
    """At most about so many held-out characters are scored, in windows spread evenly."""
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


def load_config(path: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """The settings from a YAML file (or none), with `overrides` (nested as in the file) on top.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TsugikiError(f"cannot read {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise TsugikiError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, dict):
            raise TsugikiError(f"{path} holds no settings; it should say model, data and out at least")
        given = loaded
    lora = given.get("lora") or {}
    if not isinstance(lora, dict):
        raise TsugikiError(f"{path}: lora is {lora!r}; it should hold settings such as r and lora_alpha")
    lora = {**lora, **overrides.pop("lora", {})}
    merged = {**given, **overrides, **({"lora": lora} if lora else {})}
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise TsugikiError(_one_line(error, path)) from error


def _one_line(error: ValidationError, path: Path | None) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
        given = "" if problem["type"] in ("missing", "extra_forbidden") else f" (got {problem['input']!r})"
        problems.append(f"{where}: {problem['msg'].removeprefix('Value error, ').lower()}{given}")
    return f"{path or 'settings'}: {'; '.join(problems)}"
