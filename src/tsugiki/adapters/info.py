"""What can be told of an adapter's folder at once: from its config, and from the head of its weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.adapters.format import Base, read_adapter_config, read_base, read_peft_config, read_weights
from tsugiki.adapters.lora_weights import parse_tensors
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import methods_of


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is."""

    method: str
    """As `tsugiki methods` calls it."""
    ranks: tuple[int, ...]
    """Those of the file's layers, each once, the lowest first; none where the method has none."""
    targets: tuple[str, ...]
    """The kinds of layers that it changes, or the pattern that names them."""
    base: Base
    parameters: int
    """Numbers in the file."""
    size: int
    """Of the file of weights, in bytes."""
    changed: float
    """When that was written, in seconds since 1970."""


def read_adapter_info(folder: Path) -> AdapterInfo:
    """The facts of the adapter in a folder; of its numbers none is read.

    Raises:
        TsugikiError: no adapter there, or one that is seen to be broken at a glance: its config, its names, its shapes.
    """
    config, tensors = read_adapter_config(folder), read_weights(folder)
    ranks, targets = set(), _said_targets(config)
    if isinstance(config, LoraConfig):
        layers, _, problems = parse_tensors(read_peft_config(folder), tensors)
        if problems:
            raise TsugikiError(f"{folder / ADAPTER_FILE} is broken: {summarise_list(problems)}")
        ranks = {layer.r for layer in layers.values()}
        targets = sorted({path.rpartition(".")[2] for path in layers})
    status = (folder / ADAPTER_FILE).stat()
    return AdapterInfo(
        " + ".join(methods_of(config)) or type(config).__name__,
        tuple(sorted(ranks)),
        tuple(targets),
        read_base(folder),
        sum(tensor.numel() for tensor in tensors.values()),
        status.st_size,
        status.st_mtime,
    )


def _said_targets(config: Any) -> list[str]:
    """What the config's field of targets says, whatever its method calls the field."""
    names = ("target_modules", "target_parameters")
    fields = dataclasses.asdict(config)
    said = next((fields[name] for name in names if fields.get(name)), ())
    return [said] if isinstance(said, str) else sorted(said)
