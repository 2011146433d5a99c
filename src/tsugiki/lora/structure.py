"""Find the linear layers of a model that an adapter can train, by running a copy of the model without weights.

A model type needs no entry in a table: a copy is built from the model's class and config, and a few tokens run through
it (`lora.weightless`). The layers that the logits depend on are read from the graph that autograd records; there is no
backward pass.

A layer is listed if it

1. is in a block: inside an item of an outermost list of modules that hold linear layers;
2. is linear: it computes x Wᵀ + b. A router that returns a tuple is not, although its class derives from `nn.Linear`;
3. is called, and the logits depend on its output. This excludes the layers of an image encoder, and an indexer that
   only selects positions;
4. is used only by calling it. An adapter of a layer whose weight is read elsewhere (Mamba's `dt_proj`) would not
   train;
5. is not a router, whose outputs, one for each expert, are compared with each other;
6. has at least eight inputs and outputs: a pair of factors for fewer would not be smaller than the layer;
7. is not behind a fused kernel: of a state-space mixer only the first layer is listed, since the kernels on a GPU read
   the weights of the others directly.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tsugiki.language import _
from tsugiki.lora.trace import Trace, structure_key, trace
from tsugiki.model.linear import features

_FEWEST_FEATURES = 8


def default_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers on which an adapter is put, in the order of the model's modules.

    Raises:
        TsugikiError: as for `reasons_against`.
    """
    return [name for name, reason in reasons_against(model).items() if not reason]


def reasons_against(model: nn.Module) -> Mapping[str, str]:
    """Return, for each linear layer, a short reason why no adapter is put on it; an empty string if one is put on it.

    The keys are the layers' names in the model before any graft. The weights of the model are not used, and it is not
    changed.

    Raises:
        TsugikiError: the model is not one of transformers, cannot be built from its config, or does not run on token
            ids.
    """
    key = structure_key(model)
    if key not in _known:
        _known[key] = _find_reasons(trace(model))
    return _known[key]


def place_of(run: Trace, name: str) -> str | None:
    """Return the name of a module inside a block, or None if it is not inside a block.

    In the name, `*` replaces the item of a collection from which tokens choose, so that all experts of a block have the
    same name.
    """
    block = run.block_of(name)
    if block is None or block == name:
        return None
    place, module = [block], run.model.get_submodule(block)
    for child in name[len(block) + 1 :].split("."):
        around, module = module, getattr(module, child)
        place.append("*" if _count_alike(around, type(module)) in run.choices - {1} else child)
    return ".".join(place)


_known: dict[Any, Mapping[str, str]] = {}


def _find_reasons(run: Trace) -> dict[str, str]:
    places = {name: place_of(run, name) for name in run.linear}
    # Which experts these few tokens are sent to depends on random weights.
    live, bypassed = ({places[name] for name in names} for names in (run.live, run.bypassed))

    def reason(name: str, place: str | None) -> str:
        if place is None:
            return _("outside of the blocks")
        if place in bypassed:
            return _("its weight is read without calling the layer")
        if place not in live:
            return _("no effect on the logits of a text")
        if _is_router(run, name):
            return "router"
        if min(features(run.linear[name])) < _FEWEST_FEATURES:
            return _("fewer than {count} inputs or outputs").format(count=_FEWEST_FEATURES)
        return _("its weight is read by a fused kernel on GPUs") if _is_behind_kernel(run, name) else ""

    return {name: reason(name, place) for name, place in places.items()}


def _is_router(run: Trace, name: str) -> bool:
    """Return whether the layer's outputs are compared, and a module around it in the block has an expert for each."""
    outputs = features(run.linear[name])[1]
    around = name.rpartition(".")[0]
    while name in run.compared and around != run.block_of(name):
        if any(_experts(module) == outputs for module in run.model.get_submodule(around).modules()):
            return True
        around = around.rpartition(".")[0]
    return False


def _is_behind_kernel(run: Trace, name: str) -> bool:
    """Return whether the layer belongs to a state-space mixer and is not the first that it calls."""
    owner = name.rpartition(".")[0]
    if not {"A_log", "D"} <= run.model.get_submodule(owner)._parameters.keys():  # decay and skip, by Mamba's names
        return False
    return name != next(call.name for call in run.calls if call.name.rpartition(".")[0] == owner)


def _count_alike(module: nn.Module, kind: type) -> int:
    """Return how many items of this class a list or dictionary of modules has; 0 for any other module."""
    collects = isinstance(module, nn.ModuleList | nn.ModuleDict)
    return sum(type(item) is kind for item in module.children()) if collects else 0


def _experts(module: nn.Module) -> int:
    """Return how many experts a module holds: the length of a collection, or the number of matrices in a weight."""
    weights = [] if isinstance(module, nn.modules.conv._ConvNd) else module._parameters.values()
    stacked = [len(w) for w in weights if w is not None and w.dim() == 3 and min(w.shape[1:]) > 1]
    return max([_count_alike(module, type(item)) for item in module.children()] + stacked, default=0)
