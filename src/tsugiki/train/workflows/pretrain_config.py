"""The settings of training from nothing: a YAML file, with a few flags on top."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.dtypes import SaveDtype
from tsugiki.train.config import RunConfig, TrainingSettings, read_yaml, validated


class TokenizerSettings(BaseModel):
    """A tokenizer to be trained (see `data.vocabulary`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(ge=258, le=1_000_000)
    """Tokens in all."""
    data: str | None = Field(default=None, min_length=1)
    """More text to learn it from, beside the run's own; what is like the held-out text is left out."""
    common_characters: int | None = Field(default=None, ge=0)
    """How many of the commonest characters are single tokens; a third of the vocabulary."""
    alphabet: str = ""
    """Characters that are single tokens however rare they are."""
    max_piece: int = Field(default=8, ge=1)
    """Characters a token at most."""


class PretrainConfig(TrainingSettings):
    """What `tsugiki pretrain` does. Defaults are those of training from nothing, not of an adapter."""

    model: dict[str, Any]
    """`model_type` (gpt2, llama, …) and settings of that model's config; what is not said is the config's default."""
    tokenizer: TokenizerSettings | Annotated[str, Field(min_length=1)]
    """One to be trained, or the folder or hub id of one that there is."""

    epochs: float = Field(default=1, gt=0, le=10_000, allow_inf_nan=False)
    batch_size: int = Field(default=8, ge=1)
    grad_accum: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    warmup_ratio: float = Field(default=0.02, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    save_dtype: SaveDtype = "fp16"

    def to_record(self) -> dict[str, Any]:
        """The settings that the run follows, as JSON has them."""
        return {"method": "pretrain", **self.model_dump(mode="json", exclude=self.overridden())}

    def as_run(self, start: Path) -> RunConfig:
        """The run that trains every weight of the model in the folder `start`."""
        shared = self.model_dump(include=set(TrainingSettings.model_fields))
        return RunConfig(model=str(start), method="full", **shared)


def load_pretrain_config(path: Path, overrides: dict[str, Any]) -> PretrainConfig:
    """The settings from a YAML file, with `overrides` on top.

    Raises:
        TsugikiError: no such file, no YAML, an unknown setting, or a value that cannot be.
    """
    return validated(PretrainConfig, {**read_yaml(path), **overrides}, path)
