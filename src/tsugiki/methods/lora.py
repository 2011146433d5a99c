"""LoRA: a low-rank pair beside each target layer, whose own weight is frozen.

    y = W x + b + s · B A dropout(x)        A [r, in],  B [out, r],  s = alpha / r

    lora      B starts at zero, so nothing changes before training      Hu et al. 2021, arXiv:2106.09685
    rslora    s = alpha / √r, so that high ranks learn as fast          Kalajdzievski 2023, arXiv:2312.03732

r (in + out) numbers train instead of in · out, and merged, W + s · B A costs nothing. The trade-off: the update of a
layer has rank r at most, and which layers have a pair matters more than r. The layer itself is `tsugiki.lora.layer`.

In the file, which is PEFT's:

    base_model.model.<module path>.lora_A.weight       [r, in]
    base_model.model.<module path>.lora_B.weight       [out, r]
    base_model.model.<module path>.lora_embedding_A    [r, entries]   (embeddings)
    base_model.model.<module path>.lora_embedding_B    [width, r]
    base_model.model.<module path>.base_layer.bias     (a trained bias of a grafted layer)
    base_model.model.<parameter path>                  (other biases, modules_to_save)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import is_conv1d
from tsugiki.lora.targets import base_modules, find_targets
from tsugiki.methods.method import PREFIX, Form, read_fields

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
# Starts that leave the frozen weights alone; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def _tensors(model: nn.Module, adapter: LoraAdapter) -> dict[str, Tensor]:
    layers = dict(base_modules(model))
    tensors: dict[str, Tensor] = {}
    for path, pair in adapter.pairs.items():
        form = "{}.lora_embedding_{}" if isinstance(layers[path], nn.Embedding) else "{}.lora_{}.weight"
        tensors[PREFIX + form.format(path, "A")] = pair.A
        tensors[PREFIX + form.format(path, "B")] = pair.B
    for path, module in adapter.modules.items():
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in module.state_dict().items()}
    for path, bias in adapter.biases.items():
        owner, _, attribute = path.rpartition(".")
        tensors[f"{PREFIX}{owner}.base_layer.{attribute}" if owner in adapter.pairs else f"{PREFIX}{path}"] = bias
    return tensors


def _to_json(model: nn.Module, adapter: LoraAdapter) -> dict[str, Any]:
    config = adapter.config
    fields = dataclasses.asdict(config)
    targets = find_targets(model, config)
    if config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = _shortest_names(model, config, targets)
    fields["fan_in_fan_out"] = any(is_conv1d(layer) for layer in targets.values())
    return fields


def _from_json(fields: Mapping[str, Any]) -> LoraConfig:
    start = fields.get("init_lora_weights", True)
    if start not in _INITIALISATIONS:
        raise TsugikiError(f"init_lora_weights={start!r} would change the result and is not supported")
    known_start = start if start in (True, False, "gaussian") else True
    config: LoraConfig = read_fields(LoraConfig, {**fields, "init_lora_weights": known_start}, _HARMLESS)
    return config


def _shortest_names(model: nn.Module, config: LoraConfig, targets: Mapping[str, nn.Module]) -> Sequence[str]:
    """Name endings that find just these targets, or else their full names."""
    endings = sorted({name.rpartition(".")[2] for name in targets})
    found = find_targets(model, dataclasses.replace(config, target_modules=endings))
    return endings if set(found) == set(targets) else sorted(targets)


LORA = Form("LORA", LoraConfig, _tensors, _to_json, _from_json)
