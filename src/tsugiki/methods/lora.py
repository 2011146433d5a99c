"""LoRA: a low-rank pair beside each target layer, whose own weight is frozen.

    y = W x + b + s · B A dropout(x)        A [r, in],  B [out, r],  s = alpha / r

    lora      B starts at zero, so nothing changes before training      Hu et al. 2021, arXiv:2106.09685
    rslora    s = alpha / √r, so that high ranks learn as fast          Kalajdzievski 2023, arXiv:2312.03732

r (in + out) numbers train instead of in · out, and merged, W + s · B A costs nothing. The trade-off: the update of a
layer has rank r at most, and which layers have a pair matters more than r. The layer itself is `tsugiki.lora.layer`.

In the file, which is PEFT's:

    base_model.model.<module path>.lora_A.weight            [r, in]; of a convolution [r, in, height, width]
    base_model.model.<module path>.lora_B.weight            [out, r]; of a convolution [out, r / groups, 1, 1]
    base_model.model.<module path>.lora_embedding_A         [r, entries]   (embeddings)
    base_model.model.<module path>.lora_embedding_B         [width, r]
    base_model.model.<module path>.lora_magnitude_vector    [out], of a convolution [1, out, 1, 1]   (DoRA)
    base_model.model.<module path>.base_layer.bias          (a trained bias of a grafted layer)
    base_model.model.<parameter path>                       (other biases, modules_to_save)

A pair with a start (PiSSA) is written as the LoRA of rank 2r that it computes: lora_A is A on A0, lora_B is B beside
-B0, r and the ranks of the config are doubled and its alphas raised so that the scaling stays. PEFT, whatever its
version, reads an ordinary LoRA. That the halves belong apart is said by `tsugiki.json`, so that the adapter is loaded
as it was, to train on; a run that is resumed knows it by its own settings.

Its relatives are its settings, and explained there: DoRA (`lora.dora`), PiSSA and orthogonal factors (`lora.starts`), a
rate of its own for B (`train.loraplus`). LoRA-FA (Zhang et al. 2023, arXiv:2308.03303) is y = W x + s B A x with
A [r, in] frozen as it was drawn, and B [out, r] alone trained: the gradient of B needs A x [tokens, r], so no layer
keeps its input x [tokens, in] (under dropout its mask, for the way back). The update is confined to the r directions of
x that A happens to see. PEFT's optimiser of that name corrects B's gradient by (A Aᵀ)⁻¹ besides; here it is the run's
own.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.frozen_layer import is_conv1d
from tsugiki.lora.names import check_names
from tsugiki.lora.targets import base_modules, find_targets, shortest_target_modules
from tsugiki.methods.method import PREFIX, AdapterFormat, read_fields

_HARMLESS = frozenset(
    {
        # settings of parallel engines: none of them changes what is computed
        *("megatron_config", "megatron_core"),
        # how A and B began: the file holds what became of them
        *("eva_config", "loftq_config"),
        # a size that only means something with `use_qalora`
        "qalora_group_size",
    }
)
# Starts that leave the frozen weights alone; as PEFT stores the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), the file
# is of a base that they changed.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def _tensors(model: nn.Module, adapter: LoraAdapter) -> dict[str, Tensor]:
    layers = dict(base_modules(model))
    tensors: dict[str, Tensor] = {}
    for path, pair in adapter.pairs.items():
        key_A, key_B = _keys(path, layers[path])
        tensors[key_A], tensors[key_B] = pair.A, pair.B
        if pair.A0 is not None and pair.B0 is not None:
            tensors[key_A], tensors[key_B] = torch.cat([pair.A, pair.A0]), torch.cat([pair.B, -pair.B0], 1)
        if pair.magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = pair.magnitude
    for path, module in adapter.modules.items():
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in module.state_dict().items()}
    for path, bias in adapter.biases.items():
        owner, _, attribute = path.rpartition(".")
        tensors[f"{PREFIX}{owner}.base_layer.{attribute}" if owner in adapter.pairs else f"{PREFIX}{path}"] = bias
    return tensors


def _fill(model: nn.Module, adapter: LoraAdapter, stored: Mapping[str, Tensor]) -> None:
    layers = dict(base_modules(model))
    for path, pair in adapter.pairs.items():
        if pair.A0 is not None and pair.B0 is not None:
            key_A, key_B = _keys(path, layers[path])
            (A, A0), (B, B0) = stored[key_A].chunk(2), stored[key_B].chunk(2, 1)
            for part, value in ((pair.A, A), (pair.A0, A0), (pair.B, B), (pair.B0, -B0)):
                part.copy_(value)
    for key, tensor in _tensors(model, adapter).items():
        tensor.copy_(stored[key])  # of a pair with a start into a copy of it


def _keys(path: str, layer: nn.Module) -> tuple[str, str]:
    form = "{}{}.lora_embedding_{}" if isinstance(layer, nn.Embedding) else "{}{}.lora_{}.weight"
    return form.format(PREFIX, path, "A"), form.format(PREFIX, path, "B")


def _to_json(model: nn.Module, adapter: LoraAdapter) -> dict[str, Any]:
    config = adapter.config
    fields = dataclasses.asdict(_as_stored(config))
    del fields["freeze_A"]  # how it was trained, which PEFT has no field for
    targets = find_targets(model, config)
    if config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = shortest_target_modules(model, config, targets)
    fields["fan_in_fan_out"] = any(is_conv1d(layer) for layer in targets.values())
    return fields


def _as_stored(config: LoraConfig) -> LoraConfig:
    """The LoRA of twice the rank that pairs with a start are."""
    if not _has_a_start(config):
        return config
    more = math.sqrt(2) if config.use_rslora else 2
    return dataclasses.replace(
        config,
        init_lora_weights=True,
        r=2 * config.r,
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        lora_alpha=more * config.lora_alpha,
        alpha_pattern={name: more * alpha for name, alpha in config.alpha_pattern.items()},
    )


def _beside(config: LoraConfig) -> dict[str, Any]:
    frozen = {"freeze_A": True} if config.freeze_A else {}
    if not _has_a_start(config):
        return frozen
    kept = ("r", "rank_pattern", "lora_alpha", "alpha_pattern")
    # The file's own start replaces whatever the pair is made with, so that is the quickest there is.
    return {name: getattr(config, name) for name in kept} | {"init_lora_weights": "pissa_niter_0"} | frozen


def _has_a_start(config: LoraConfig) -> bool:
    return str(config.init_lora_weights).startswith("pissa")


def _from_json(fields: Mapping[str, Any]) -> LoraConfig:
    start = fields.get("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        raise TsugikiError(f"init_lora_weights={start!r} would change the result and is not supported")
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        check_names(name, fields.get(name))
    known_start = start if start in (True, False, "gaussian") else True
    config: LoraConfig = read_fields(LoraConfig, {**fields, "init_lora_weights": known_start}, _HARMLESS)
    return config


LORA = AdapterFormat("LORA", LoraConfig, _tensors, _to_json, _from_json, _fill, _beside)
