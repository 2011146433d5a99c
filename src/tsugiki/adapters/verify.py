"""Check whether an adapter is complete and fits a base; all problems are listed, a clause for each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tsugiki.adapters.files import map_weights, read_adapter_config, read_base, read_peft_config, read_weights
from tsugiki.adapters.fit import misfits, not_finite
from tsugiki.adapters.lora_weights import parse_tensors
from tsugiki.base.identity import BaseIdentity, named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, RECORD_FILE
from tsugiki.io.json import read_json
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import format_of


@dataclass(frozen=True)
class KnownBase:
    """A base that adapters are checked against."""

    model: nn.Module
    """A model of its architecture; only names and shapes are used."""
    identity: BaseIdentity


def known_base(name: str) -> KnownBase:
    """Read the architecture and the identity of a base, without loading it; its digest is computed from all its files.

    Raises:
        TsugikiError: there is no such model.
    """
    return KnownBase(load_meta_model(name), named_identity(name))


def verify(folder: Path, base: KnownBase | None = None) -> list[str]:
    """List all problems of the adapter in a folder.

    Args:
        folder: the adapter's folder.
        base: a base that the adapter must fit; None: not checked. It is not checked either if the adapter has problems.
    """
    problems = find_problems(folder)
    return problems if problems or base is None else find_misfits(folder, base)


def check_adapter(folder: Path) -> Any:
    """Check that the adapter in a folder is complete.

    Returns:
        Its settings, an instance of its method's config class.

    Raises:
        TsugikiError: the adapter has problems; the message lists them.
    """
    problems = find_problems(folder)
    if problems:
        raise TsugikiError(
            _("{folder} is not a complete adapter: {problems}").format(folder=folder, problems=summarise_list(problems))
        )
    return read_adapter_config(folder)


def find_problems(folder: Path) -> list[str]:
    """List the problems of the adapter in a folder, independent of a base.

    The config must be supported, the weights must be safetensors, all values finite; LoRA factors must be complete,
    floating-point and of the ranks that the config gives; tsugiki.json and run.json, if there are any, must be JSON.
    """
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        return [_("no adapter: it has no {file}").format(file=ADAPTER_CONFIG_FILE)]
    problems = []
    config = None
    try:
        config = read_adapter_config(folder)
        read_base(folder)
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    try:
        problems += [f"{ADAPTER_FILE}: {problem}" for problem in _tensor_problems(folder, config)]
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    try:
        if (folder / RECORD_FILE).is_file():
            read_json(folder / RECORD_FILE)
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))
    return list(dict.fromkeys(problems))  # a broken tsugiki.json would be listed twice


def without_path(message: str, folder: Path) -> str:
    """Remove the path of a folder from a message, for a reader who knows the folder."""
    return message.replace(f"{folder}{os.sep}", "").replace(f" in {folder}", "")


def find_misfits(folder: Path, base: KnownBase) -> list[str]:
    """List the reasons why an adapter without problems does not fit a base; empty if it fits."""
    problems = []
    trained_on = read_base(folder)
    why = why_different(trained_on, base.identity)
    if why:
        problems.append(_("it was trained on another base ({name}): {why}").format(name=trained_on.name, why=why))
    config, tensors = read_peft_config(folder), map_weights(folder)
    adapter_format = format_of(config)
    try:
        adapter = adapter_format.build_for(base.model, config, tensors)
        expected = adapter_format.tensors(base.model, adapter)
    except TsugikiError as error:
        return [*problems, _("it does not fit the base: {error}").format(error=error)]
    return [*problems, *(f"{ADAPTER_FILE}: {problem}" for problem in misfits(base.model, expected, tensors))]


def _tensor_problems(folder: Path, config: object) -> list[str]:
    tensors = read_weights(folder)
    if not tensors:
        return [_("it holds no tensors")]
    problems = parse_tensors(read_peft_config(folder), tensors)[2] if isinstance(config, LoraConfig) else []
    return [*problems, *not_finite(tensors)]
