"""The settings of pretraining, from a YAML file and from flags."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tsugiki.dtypes import SaveDtype
from tsugiki.training.config import MACHINE_SETTINGS, NO_VALIDATION, UNRECORDED_IF_UNSET, RunConfig, TrainingSettings
from tsugiki.training.config_files import read_yaml, validated


class TokenizerSettings(BaseModel):
    """The settings of a tokenizer to train (see `data.train_tokenizer`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    vocab_size: int = Field(ge=258, le=1_000_000)
    """Number of tokens."""
    data: str | None = Field(default=None, min_length=1)
    """More text to train the tokenizer on, besides the run's data. Texts that are nearly the same as held-out text are
    left out."""
    common_characters: int | None = Field(default=None, ge=0)
    """How many of the most frequent characters are single tokens. Default: a third of the vocabulary."""
    alphabet: str = ""
    """Characters that are always single tokens, no matter how rare they are."""
    max_piece: int = Field(default=8, ge=1)
    """Largest number of characters in a token."""


class PretrainConfig(TrainingSettings):
    """The settings of `tsugiki pretrain`, with defaults for training from scratch."""

    model: dict[str, Any]
    """Architecture, in YAML: model_type (gpt2, llama, …) and settings of that model's config in transformers."""
    tokenizer: TokenizerSettings | Annotated[str, Field(min_length=1)]
    """Tokenizer: the settings of one to train, in YAML ({vocab_size: 8000}), or the folder or hub id of an existing
    one."""

    epochs: float = Field(default=1, gt=0, le=10_000, allow_inf_nan=False)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, allow_inf_nan=False)
    warmup_ratio: float = Field(default=0.02, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, gt=0, lt=1)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    save_dtype: SaveDtype = "fp16"

    def to_record(self) -> dict[str, Any]:
        """Return the settings for `run.json`: those that have an effect, and the folder."""
        off = {name for name in UNRECORDED_IF_UNSET if not getattr(self, name, None)}
        ignored: set[str] = {*MACHINE_SETTINGS, *off}
        return {"method": "pretrain", **self.model_dump(mode="json", exclude=ignored)}

    def as_run(self, start: Path) -> RunConfig:
        """Return the settings of the run that trains every weight of the model in the folder `start`."""
        shared = self.model_dump(include=set(TrainingSettings.model_fields))
        # The first step is far from the last one, and the text is long: no step is chosen, the last one is kept.
        return RunConfig(model=str(start), method="full", validation=NO_VALIDATION, **shared)


def load_pretrain_config(path: Path, overrides: dict[str, Any]) -> PretrainConfig:
    """Read the settings from a YAML file; `overrides` take precedence.

    Raises:
        TsugikiError: the file cannot be read, or a setting is unknown, missing or invalid.
    """
    return validated(PretrainConfig, {**read_yaml(path), **overrides}, path)
