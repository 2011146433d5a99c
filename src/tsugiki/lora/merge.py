"""Merging: ΔW folded into the frozen weights, so that the adapter costs nothing while it computes.

A merged layer gets a new weight W + scaling · B A; the old one is kept for `unmerge`, which brings it back to
the last bit. Since the new weight belongs to that layer alone, a weight that was shared (GPT-2's head and
embedding) is no longer shared afterwards: the model's config then says so.
"""

import warnings

import torch
from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import active_adapter, grafted_layers, require_state
from tsugiki.lora.layer import merged_weight


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Fold the active adapter into the base's weights, in place; merging twice equals once.

    A shared weight that is merged into becomes this layer's own, with a warning, and
    `config.tie_word_embeddings` becomes False so that a saved model keeps both.

    Returns:
        The same model; `ungraft(merge(model))` is a plain model with the adapter in its weights.

    Raises:
        TsugikiError: no adapter is active, a merged weight is not finite, or the base is quantised.
    """
    state = require_state(model)
    if state.merged:
        return model
    pairs = active_adapter(model).pairs
    layers = {path: layer for path, layer in grafted_layers(model).items() if path in pairs}
    for path, layer in layers.items():
        if "weight" not in layer.base_layer._parameters:
            raise TsugikiError(
                f"{path} is held in few bits, where a merge would be lost; load the base as it is stored"
            )
    weights = {path: merged_weight(layer.base_layer, pairs[path]) for path, layer in layers.items()}
    broken = [path for path, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise TsugikiError(f"merging gives values that are not finite in {broken[0]} ({len(broken)} such layers)")
    untied = _shared_elsewhere(model, set(layers)) | set(state.base_modules)
    for path, layer in layers.items():
        state.merged[path] = layer.base_layer.weight  # type: ignore[assignment]
        layer.base_layer.weight = nn.Parameter(weights[path], requires_grad=False)
        layer.lora = None
    config = getattr(model, "config", None)
    if getattr(config, "tie_word_embeddings", False) and untied & _embedding_paths(model):
        state.tied = True
        config.tie_word_embeddings = False  # type: ignore[union-attr]
        warnings.warn(
            "the adapter changes one side of the shared embedding and head; merged, they are two weights "
            "(tie_word_embeddings=False)",
            stacklevel=2,
        )
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`: the base's own weights come back to the last bit, and the adapter is active again.

    Raises:
        TsugikiError: nothing is merged.
    """
    state = require_state(model)
    if not state.merged:
        raise TsugikiError("nothing is merged into this model")
    pairs = active_adapter(model).pairs
    layers = grafted_layers(model)
    for path, weight in state.merged.items():
        layers[path].base_layer.weight = weight
        layers[path].lora = pairs[path]
    state.merged = {}
    if state.tied:
        model.config.tie_word_embeddings = True  # type: ignore[union-attr]
        state.tied = None
    return model


def _shared_elsewhere(model: nn.Module, paths: set[str]) -> set[str]:
    """Those of the grafted layers whose weight some other module holds too."""
    holders: dict[int, set[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), set()).add(path.removesuffix(".base_layer"))
    return {path for group in holders.values() if len(group) > 1 for path in group & paths}


def _embedding_paths(model: nn.Module) -> set[str]:
    """Names of the input embedding and of the output head."""
    if not hasattr(model, "get_input_embeddings"):
        return set()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return {path for path, module in model.named_modules() if any(module is end for end in ends)}
