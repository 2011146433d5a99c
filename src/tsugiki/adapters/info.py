"""Facts about an adapter that are read quickly: from its config, and from the header of its weights file."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.adapters.files import adapter_weight_files, map_weights, read_adapter_config, read_base, read_peft_config
from tsugiki.adapters.lora_weights import parameter_factors, parse_tensors
from tsugiki.adapters.metadata import BaseReference
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import methods_of


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about an adapter."""

    method: str
    """The method's name, as `tsugiki methods` lists it."""
    ranks: tuple[int, ...]
    """The different ranks of its layers, in ascending order; empty if the method has no rank."""
    targets: tuple[str, ...]
    """The last components of the names of the layers that it changes, or the pattern that selects them."""
    base: BaseReference
    parameters: int
    size: int
    """Size of the weights file in bytes."""
    changed: float
    """The time when the weights file was written, in seconds since 1970."""


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read the facts about the adapter in a folder, without reading the values of its tensors.

    Raises:
        TsugikiError: the folder holds no adapter, or its config or the names or shapes of its tensors are wrong.
    """
    config, tensors = read_adapter_config(folder), map_weights(folder)
    ranks, targets = set(), _configured_targets(config)
    if isinstance(config, LoraConfig):
        layers, others, problems = parse_tensors(read_peft_config(folder), tensors)
        if problems:
            raise TsugikiError(
                _("{path} is broken: {problems}").format(path=folder / ADAPTER_FILE, problems=summarise_list(problems))
            )
        ranks = {layer.r for layer in layers.values()}
        targets = sorted({path.rpartition(".")[2] for path in layers})
        if parameter_factors(others):
            ranks |= {config.r}
            targets += sorted({name.rpartition(".")[2] for name in config.target_parameters or ()} - {"weight"})
    files = [path.stat() for path in adapter_weight_files(folder)]
    return AdapterInfo(
        " + ".join(methods_of(config)) or type(config).__name__,
        tuple(sorted(ranks)),
        tuple(targets),
        read_base(folder),
        sum(tensor.numel() for tensor in tensors.values()),
        sum(file.st_size for file in files),
        max(file.st_mtime for file in files),
    )


def _configured_targets(config: Any) -> list[str]:
    """Return the targets that the config names, under any method's name for that setting."""
    fields = dataclasses.asdict(config)
    names = ("target_modules", "target_parameters")
    targets = next((fields[name] for name in names if fields.get(name)), ())
    return [targets] if isinstance(targets, str) else sorted(targets)
