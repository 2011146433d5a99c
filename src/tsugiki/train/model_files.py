"""A whole model as an ordinary Transformers folder: written in pieces that appear whole, and read back into place."""

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from tsugiki.base.progress_bars import hidden_progress_bars
from tsugiki.dtypes import SaveDtype, torch_dtype
from tsugiki.errors import TsugikiError, error_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_model(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: SaveDtype = "float32"
) -> None:
    """Write model and tokenizer into `folder`, which may hold other files.

    Everything is written beside first and then moved, the weights last.

    Args:
        model: a model of transformers; it stays as it is.
        tokenizer: its own.
        folder: made where it is not there.
        dtype: of the saved weights.

    Raises:
        TsugikiError: the folder cannot be written.
    """
    part = folder / ".model.part"
    stored = torch_dtype(dtype)
    written = model if stored == next(model.parameters()).dtype else copy.deepcopy(model).to(stored)
    try:
        part.mkdir(parents=True, exist_ok=True)
        with hidden_progress_bars():  # a bar for one file would tell nothing
            written.save_pretrained(part)  # type: ignore[operator]
        tokenizer.save_pretrained(part)
        for path in sorted(part.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise TsugikiError(f"cannot write the model to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refill_model(model: nn.Module, folder: Path) -> None:
    """Put the weights stored in `folder`, a model folder of the same architecture, into `model`.

    Raises:
        TsugikiError: no model there, or another one.
    """
    from tsugiki.base.loading import load_model

    try:
        model.load_state_dict(load_model(str(folder)).state_dict())
    except RuntimeError as error:
        raise TsugikiError(f"{folder} holds another model: {error_text(error)}") from error
