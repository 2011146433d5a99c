"""Is an adapter whole, and does it fit a base? Everything that is wrong with it, a sentence each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tsugiki.adapters.format import misfits, not_finite, read_adapter_config, read_base, read_peft_config, read_weights
from tsugiki.adapters.lora_weights import parse_tensors
from tsugiki.base.fingerprint import named_fingerprint
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, RECORD_FILE
from tsugiki.io.json import read_json
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import format_of


@dataclass(frozen=True)
class KnownBase:
    """A base that adapters are held against."""

    model: nn.Module
    """Its shape alone is looked at."""
    fingerprint: str | None
    """Of its stored weights; None where they are not on this machine."""


def known_base(name: str) -> KnownBase:
    """The base called so: its shape, and the fingerprint of its files, all of which are read.

    Raises:
        TsugikiError: there is none.
    """
    return KnownBase(load_meta_model(name), named_fingerprint(name))


def verify(folder: Path, base: KnownBase | None = None) -> list[str]:
    """All that is wrong with the adapter in a folder; nothing, where it is whole and fits.

    Args:
        folder: the adapter's.
        base: that it must fit.
    """
    problems = find_problems(folder)
    return problems if problems or base is None else find_misfits(folder, base)


def check_adapter(folder: Path) -> Any:
    """The settings of the adapter in a folder, of whatever method, if it is whole by itself.

    Raises:
        TsugikiError: it is not; the message says what is wrong.
    """
    problems = find_problems(folder)
    if problems:
        raise TsugikiError(f"{folder} is no whole adapter: {summarise_list(problems)}")
    return read_adapter_config(folder)


def find_problems(folder: Path) -> list[str]:
    """What is wrong with the adapter in a folder, by itself: nothing, where it is whole.

    Its config is known, its weights are safetensors, every number is finite; LoRA's pairs are whole, of the ranks that
    the config says, and of floating point; what else is kept beside them can be read.
    """
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return [f"no adapter: it has no {ADAPTER_CONFIG_FILE}"]
    problems = []
    config = None
    try:
        config = read_adapter_config(folder)
        read_base(folder)
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    try:
        problems += [f"{ADAPTER_FILE}: {what}" for what in _wrong_tensors(folder, config)]
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    try:
        if (folder / RECORD_FILE).exists():
            read_json(folder / RECORD_FILE, missing="")
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    return problems


def without_path(message: str, folder: Path) -> str:
    """A message about a folder where it is known which."""
    return message.replace(f"{folder}{os.sep}", "").replace(f" in {folder}", "")


def find_misfits(folder: Path, base: KnownBase) -> list[str]:
    """What of the adapter in a folder, which is whole by itself, does not fit a base."""
    problems = []
    said = read_base(folder)
    if said.fingerprint and base.fingerprint and said.fingerprint != base.fingerprint:
        problems.append(f"it was trained on another base ({said.name}): the weights differ")
    config, stored = read_peft_config(folder), read_weights(folder)
    form = format_of(config)
    try:
        wanted = form.tensors(base.model, form.build_for(base.model, config, stored.keys()))
    except TsugikiError as error:
        return [*problems, f"it does not fit the base: {error}"]
    return [*problems, *(f"{ADAPTER_FILE}: {what}" for what in misfits(base.model, wanted, stored))]


def _wrong_tensors(folder: Path, config: object) -> list[str]:
    tensors = read_weights(folder)
    if not tensors:
        return ["it holds no tensor"]
    of_names = parse_tensors(read_peft_config(folder), tensors)[2] if isinstance(config, LoraConfig) else []
    return [*of_names, *not_finite(tensors)]
