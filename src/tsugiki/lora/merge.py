"""Merging: an adapter folded into the frozen weights, so that it costs nothing while it computes.

A layer gets a new weight, such as W + scaling · B A; the old one is kept for `unmerge`, which brings it back to
the last bit. Since the new weight belongs to that layer alone, a weight that was shared (GPT-2's head and
embedding) is no longer shared afterwards: the model's config then says so.
"""

import warnings
from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import active_adapter, require_state
from tsugiki.lora.swap import Undo, replace_parameter


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Fold the active adapter into the base's weights, in place; merging twice equals once.

    A shared weight that is merged into becomes this layer's own, with a warning, and
    `config.tie_word_embeddings` becomes False so that a saved model keeps both.

    Returns:
        The same model; `ungraft(merge(model))` is a plain model with the adapter in its weights.

    Raises:
        TsugikiError: no adapter is active, its method cannot be merged, a merged weight is not finite, or the base is
            quantised.
    """
    state = require_state(model)
    if state.merged is None:
        state.merged = active_adapter(model).merge(model)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`: the base's own weights come back to the last bit, and the adapter is active again.

    Raises:
        TsugikiError: nothing is merged.
    """
    state = require_state(model)
    if state.merged is None:
        raise TsugikiError("nothing is merged into this model")
    for undo in reversed(state.merged):
        undo()
    state.merged = None
    return model


def fold(model: nn.Module, weights: Mapping[str, Tensor], also_untied: Collection[str] = ()) -> list[Undo]:
    """Give layers these weights of their own; what was shared is so no longer, and the config says it.

    Args:
        model: whose layers they are.
        weights: layer's name before any graft -> its new weight.
        also_untied: other modules that the adapter has given weights of their own.

    Raises:
        TsugikiError: a weight is not finite.
    """
    broken = [path for path, weight in weights.items() if not torch.isfinite(weight).all()]
    if broken:
        raise TsugikiError(f"merging gives values that are not finite in {broken[0]} ({len(broken)} such layers)")
    untied = _shared_elsewhere(model, set(weights)) | set(also_untied)
    undo = [
        replace_parameter(model, f"{path}.weight", nn.Parameter(weight, requires_grad=False))
        for path, weight in weights.items()
    ]
    return undo + untie(model, untied)


def untie(model: nn.Module, layers: Collection[str]) -> list[Undo]:
    """Say in the model's config that embedding and head are two weights, where one of these layers is either."""
    config = getattr(model, "config", None)
    tied = config is not None and getattr(config, "tie_word_embeddings", False)
    if not tied or not _embedding_paths(model) & set(layers):
        return []
    config.tie_word_embeddings = False  # type: ignore[union-attr]
    warnings.warn(
        "the adapter changes one side of the shared embedding and head; merged, they are two weights "
        "(tie_word_embeddings=False)",
        stacklevel=4,
    )
    return [partial(setattr, config, "tie_word_embeddings", True)]


def require_unquantized(layers: Mapping[str, nn.Module], instead: str = "load the base as it is stored") -> None:
    """Ask that each of these layers of the base, by name, has a weight that can be merged into.

    Args:
        layers: the frozen layers.
        instead: what to do where one has none.

    Raises:
        TsugikiError: one has none.
    """
    for path, layer in layers.items():
        if "weight" not in layer._parameters:
            raise TsugikiError(f"{path} is held in few bits, where a merge would be lost; {instead}")


def _shared_elsewhere(model: nn.Module, paths: set[str]) -> set[str]:
    """Those of the layers whose weight some other module holds too."""
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
