"""Continue the training of an adapter: begin a run with its values, at its rank or a larger rank.

A pair of larger rank computes the same update at first: A gets new rows, and B gets columns of zeros. Because the
factor alpha / r becomes smaller, B is multiplied by the ratio of the old factor to the new factor.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.files import read_adapter_config, read_weights
from tsugiki.adapters.format import load_tensors, refuse_another_base
from tsugiki.adapters.library import adapter_folder
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft_state import active_adapter
from tsugiki.methods.table import METHODS, format_of, methods_of


def settings_to_start_from(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that begins with an adapter: its method, and the settings of the method.

    Args:
        name: the adapter's folder, or its name in the library.
        settings: the settings of the run, nested as in a YAML file.

    Raises:
        TsugikiError: there is no such adapter, or a setting other than a larger rank differs from the adapter's.
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
        hint = _(", and r can be {rank} or more").format(rank=own["r"]) if section == "lora" else ""
        raise TsugikiError(
            _(
                "{name} has other settings than this run ({names}): leave these out, because a run that begins "
                "with an adapter takes the adapter's{hint}"
            ).format(name=name, names=summarise_list(different), hint=hint)
        )
    fixed = METHODS[method].fixed_settings
    taken = {key: value for key, value in own.items() if key not in fixed}
    return {**settings, "method": method, section: {**taken, **given}}


def start_from(model: nn.Module, name: str) -> None:
    """Copy the values of an adapter into the active adapter of a model, which has its settings or a larger rank.

    Raises:
        TsugikiError: there is no such adapter, it was trained on another base, or it has patterns of ranks.
    """
    folder = adapter_folder(name)
    refuse_another_base(model, folder)
    adapter, config = active_adapter(model), read_adapter_config(folder)
    tensors = read_weights(folder)
    if isinstance(config, LoraConfig) and adapter.config.r != config.r:
        if config.rank_pattern or config.alpha_pattern:
            raise TsugikiError(
                _("{folder} has patterns of ranks or alphas, so its rank cannot be raised: leave r out").format(
                    folder=folder
                )
            )
        factor = config.scaling_of("") / adapter.config.scaling_of("")
        tensors = _widened(tensors, format_of(config).tensors(model, adapter), factor)
    load_tensors(model, adapter, tensors, str(folder / ADAPTER_FILE))


def _is_larger(key: str, value: Any, own: Mapping[str, Any]) -> bool:
    return key == "r" and isinstance(value, int) and value >= own["r"]


def _as_in_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _widened(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return the tensors with the shapes of a larger rank.

    Args:
        tensors: the tensors of the file, by their names.
        expected: the tensors of the new adapter, from which the new rows of A are taken.
        factor: the factor on B.
    """
    wide = {}
    for name, tensor in tensors.items():
        target = expected.get(name)
        if target is None or target.shape == tensor.shape or target.dim() != tensor.dim():
            wide[name] = tensor
            continue
        is_A = tensor.shape[0] != target.shape[0]
        new = target.detach().clone() if is_A else torch.zeros_like(target)
        if is_A:
            new[: tensor.shape[0]] = tensor
        else:
            new[:, : tensor.shape[1]] = tensor * factor
        wide[name] = new
    return wide
