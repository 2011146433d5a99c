"""Continue the training of an adapter: begin a run with its values, at its rank or a larger rank.

A pair of larger rank computes the same update at first: A gets new rows, and B gets columns of zeros. Because the
factor alpha / r becomes smaller, B and its bias are multiplied by the ratio of the old factor to the new factor.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from tsugiki.adapters.files import read_adapter_config, read_weights
from tsugiki.adapters.format import load_tensors, read_adapter, refuse_another_base
from tsugiki.adapters.library import adapter_folder
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import ParameterPair
from tsugiki.lora.hold import active_adapter
from tsugiki.lora.pair import LowRank
from tsugiki.methods.table import METHODS, format_of, methods_of


def settings_to_start_from(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that begins with an adapter: its method, and the settings of the method.

    `settings`, nested as in a YAML file, are those of the run. They must not differ from the adapter's, but for the
    rank, which can be larger.
    """
    config = read_adapter_config(adapter_folder(name))
    method = methods_of(config)[0]
    section = "lora" if isinstance(config, LoraConfig) else "method_config"
    own = {field.name: _as_in_yaml(getattr(config, field.name)) for field in fields(config)}
    given = {key: _as_in_yaml(value) for key, value in (settings.get(section) or {}).items()}
    different = [
        f"{section}.{key}" for key, value in given.items() if own.get(key) != value and not _is_larger(key, value, own)
    ]
    if settings.get("method", method) != method:
        different.append("method")
    if different:
        hint = _(", and r can be {rank} or more", rank=own["r"]) if section == "lora" else ""
        raise TsugikiError(
            "{name} has other settings than this run ({names}): leave these out, because a run that begins "
            "with an adapter takes the adapter's{hint}",
            name=name,
            names=summarise_list(different),
            hint=hint,
        )
    fixed = METHODS[method].fixed_settings
    taken = {key: value for key, value in own.items() if key not in fixed}
    return {**settings, "method": method, section: {**taken, **given}}


def start_from(model: nn.Module, name: str) -> None:
    """Copy the values of an adapter into the active adapter of a model, which has its settings or a larger rank."""
    folder = adapter_folder(name)
    adapter, config = active_adapter(model), read_adapter_config(folder)
    source = str(folder / ADAPTER_FILE)
    if not isinstance(config, LoraConfig) or adapter.config.r == config.r:
        refuse_another_base(model, folder)
        load_tensors(model, adapter, read_weights(folder), source)
        return
    old = read_adapter(model, folder, config)
    for path, pair in old.pairs.items():
        _widen(pair, adapter.pairs[path])
    for path, pair in old.parameter_pairs.items():
        _widen(pair, adapter.parameter_pairs[path])
    load_tensors(model, adapter, format_of(config).tensors(model, old), source)


def _is_larger(key: str, value: Any, own: Mapping[str, Any]) -> bool:
    return key == "r" and isinstance(value, int) and value >= own["r"]


def _as_in_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@torch.no_grad()
def _widen(pair: LowRank, fresh: LowRank) -> None:
    """Give a pair the rank and the factor of a fresh pair, so that it computes the same as before.

    The further rows of A are those of the fresh pair. The further columns of B are zeros, or those of the fresh pair
    where their product is zero and must not stay so: for an embedding, whose fresh A is zero, and for PiSSA.
    """
    factor = pair.scaling / fresh.scaling
    if isinstance(pair, ParameterPair) and len(pair.shape) == 3:
        blocks = pair.shape[0]
    else:
        blocks = len(pair.A) // pair.B.shape[1]  # This is 1 except for a convolution in groups.
    for name in ("A", "A0"):
        rows = getattr(pair, name)
        if rows is not None:
            wide = getattr(fresh, name).detach().clone().unflatten(0, (blocks, -1))
            wide[:, : len(rows) // blocks] = rows.unflatten(0, (blocks, -1))
            setattr(pair, name, nn.Parameter(wide.flatten(0, 1)))
    keeps_fresh = pair.B0 is not None or not fresh.A.any()
    for name in ("B", "B0"):
        columns = getattr(pair, name)
        if columns is not None:
            wide = getattr(fresh, name).detach().clone() if keeps_fresh else torch.zeros_like(fresh.B)
            wide[:, : columns.shape[1]] = columns * factor
            setattr(pair, name, nn.Parameter(wide))
    if pair.bias is not None:
        pair.bias.mul_(factor)
