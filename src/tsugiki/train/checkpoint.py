"""Checkpoints: everything that a run needs to continue as if it had not stopped. Nothing is pickled.

checkpoint-N/
    adapter_model.safetensors, adapter_config.json, tsugiki.json    the adapter, in the format of finished runs,
    or model.safetensors, config.json, tokenizer.json, …            or the model, if every weight trains
    optimizer.safetensors       tensors of the optimiser's state, named <parameter index>.<name>
    random.safetensors          torch's random states
    training.json               other values of the optimiser, the schedule, Python's and NumPy's random states, meters
    trainer_state.json          state of transformers' Trainer
"""

import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.errors import TsugikiError
from tsugiki.io.json import read_json, write_json

_OPTIMIZER, _RANDOM, _TRAINING = "optimizer.safetensors", "random.safetensors", "training.json"


def save_training_state(
    folder: Path, optimizer: Mapping[str, Any], schedule: Mapping[str, Any], meters: Mapping[str, float]
) -> None:
    """Write the training state of a checkpoint, including the current random states.

    Args:
        folder: the folder of the checkpoint.
        optimizer: state dict of the optimiser.
        schedule: state dict of the learning rate schedule.
        meters: fields of `train.trainer.Meters`.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                plain[f"{index}.{name}"] = value
    save_file(tensors, folder / _OPTIMIZER)
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(states, folder / _RANDOM)
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    write_json(
        folder / _TRAINING,
        {
            "optimizer": {"state": plain, "param_groups": optimizer["param_groups"]},
            "schedule": dict(schedule),
            "python": random.getstate(),
            "numpy": [name, keys.tolist(), position, has_gauss, gauss],  # type: ignore[union-attr]
            "meters": dict(meters),
        },
    )


def load_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """Read the state dicts of the optimiser and of the schedule, and the meters.

    Raises:
        TsugikiError: a file is missing or broken.
    """
    fields = _read(folder)
    optimizer: dict[str, Any] = {"state": {}, "param_groups": fields["optimizer"]["param_groups"]}
    for key, value in {**_load(folder / _OPTIMIZER), **fields["optimizer"]["state"]}.items():
        index, _, name = key.partition(".")
        optimizer["state"].setdefault(int(index), {})[name] = value
    return optimizer, fields["schedule"], fields["meters"]


def restore_random_states(folder: Path) -> None:
    """Restore the states of Python's, NumPy's and torch's random generators.

    Raises:
        TsugikiError: a file is missing or broken.
    """
    fields = _read(folder)
    states = _load(folder / _RANDOM)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda.0" in states:
        torch.cuda.set_rng_state_all([states[f"cuda.{i}"] for i in range(len(states) - 1)])
    version, internal, gauss = fields["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = fields["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints in a folder except the newest `count`."""
    for path in checkpoints(folder)[:-count]:
        shutil.rmtree(path, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / _TRAINING, missing=f"{folder} is not a checkpoint: it has no {_TRAINING}")


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TsugikiError(
            f"{path} is broken: {error}; delete {path.parent} to continue from an earlier one"
        ) from error
