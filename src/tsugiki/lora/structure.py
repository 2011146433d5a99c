"""Which linear layers of a model an adapter can train, found by running a copy of the model without weights.

A model type needs no entry in a table: a copy is built from the model's class and config, and a few tokens run through
it (`lora.weightless`). What the logits depend on is read off the graph that autograd records; there is no backward
pass.

A layer is listed if it

1. is in a block: inside an item of an outermost list of modules that hold linear layers;
2. is linear: it computes x Wᵀ + b. A router that returns a tuple is not, although its class derives from `nn.Linear`;
3. is called, and the logits depend on its output. The layers of an image encoder are not, nor an indexer that only
   selects positions;
4. is used by calling it alone. An adapter of a layer whose weight is read elsewhere (Mamba's `dt_proj`) would not
   train;
5. is no router, whose outputs, one for each expert, are compared with each other;
6. has at least eight inputs and outputs: a pair of factors for fewer would not be smaller than the layer;
7. is not behind a fused kernel: of a state-space mixer only the first layer is listed, since the kernels on a GPU read
   the weights of the others directly.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tsugiki.errors import TsugikiError
from tsugiki.lora.frozen_layer import features, is_conv1d, is_linear
from tsugiki.lora.weightless import run, weightless_copy

_FEWEST_FEATURES = 8


@dataclass(frozen=True)
class Structure:
    """What one pass shows of a model's layers, by their names in the model before any graft."""

    reasons: Mapping[str, str]
    """Each linear layer -> why no adapter is put on it by default, in a few words; empty if one is. In the order of the
    model's modules."""

    @property
    def layers(self) -> list[str]:
        """The linear layers on which an adapter is put."""
        return [name for name, reason in self.reasons.items() if not reason]


def structure_of(model: nn.Module) -> Structure:
    """Return the structure of a model of transformers; its weights are not used, and it is not changed.

    Raises:
        TsugikiError: the model cannot be built from its config, or does not run on token ids.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        raise TsugikiError(f"{type(model).__name__} is not a model of transformers, so its layers must be named")
    key = config.to_json_string(use_diff=False)
    if (type(model), key) not in _known:
        _known[type(model), key] = _find_structure(type(model), config)
    return _known[type(model), key]


_known: dict[tuple[type, str], Structure] = {}


def _find_structure(model_class: type[nn.Module], config: Any) -> Structure:
    try:
        model = weightless_copy(model_class, config)
        reasons = _Trace(model).reasons()
    except Exception as error:  # any error of the model's own code
        reason = str(error).partition("\n")[0]
        raise TsugikiError(
            f"the layers of {model_class.__name__} could not be found by running it without weights "
            f"({type(error).__name__}: {reason})"
        ) from error
    return Structure(reasons)


class _Trace:
    """Passes of a few tokens through a model, and which layers' outputs and weights its logits depend on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.linear = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
        self.added = {name: torch.zeros(features(layer)[1], requires_grad=True) for name, layer in self.linear.items()}
        """What is added to the output of each layer: if the logits depend on the layer, they depend on it."""
        self.called: list[str] = []
        """The names of the layers, in the order in which they are called."""
        for name, layer in self.linear.items():
            layer.forward = partial(self._output, name, layer)
        selections = _Selections()
        with selections:
            behind_logits = _leaves_behind(_logits(run(model.eval())))
        self.live = self._with_ids(self.added, behind_logits)
        """The layers on whose outputs the logits depend."""
        self.selecting = self._nearest(selections.nodes)
        """The layers whose outputs are compared with each other, such as routers."""
        self.choices = selections.choices
        """The numbers of outputs that are compared, such as the number of experts."""
        weights = {name: layer.weight for name, layer in self.linear.items()}
        behind_logits |= _leaves_behind(_logits(run(model.train())))
        self.bypassed = self._with_ids(weights, behind_logits)
        """The layers on whose weights the logits depend otherwise than through calls of the layer."""

    def reasons(self) -> dict[str, str]:
        """Return why a layer is not trained, for each linear layer of the model; an empty reason if it is.

        The reasons are the conditions of this module's docstring.
        """
        lists = _lists_of_blocks(self.model)
        places = {name: self._place(name, lists) for name in self.linear}
        # Which experts these few tokens go to is chance.
        live, bypassed = ({places[name] for name in names} for names in (self.live, self.bypassed))

        def reason(name: str, place: str | None) -> str:
            if place is None:
                return "outside of the blocks"
            if place in bypassed:
                return "its weight is read without calling the layer"
            if place not in live:
                return "no effect on the logits of a text"
            if self._is_router(name, lists):
                return "router"
            if min(features(self.linear[name])) < _FEWEST_FEATURES:
                return f"fewer than {_FEWEST_FEATURES} inputs or outputs"
            return "its weight is read by a fused kernel on GPUs" if self._is_behind_kernel(name) else ""

        return {name: reason(name, place) for name, place in places.items()}

    def _output(self, name: str, layer: nn.Module, x: Tensor) -> Tensor:
        """Compute the layer's output from the values of its weight, so that the graph has only other uses of it."""
        self.called.append(name)
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        return F.linear(x, weight.T if is_conv1d(layer) else weight) + self.added[name]

    def _with_ids(self, tensors: Mapping[str, Tensor], ids: Collection[int]) -> set[str]:
        return {name for name, tensor in tensors.items() if id(tensor) in ids}

    def _nearest(self, nodes: Iterable[Any]) -> set[str]:
        """Return the layers on whose outputs these nodes of the graph depend directly, not through other layers."""
        names = {id(added): name for name, added in self.added.items()}
        nearest: set[str] = set()

        def is_output(before: Sequence[Any]) -> bool:
            own = {names[id(node.variable)] for node in before if id(getattr(node, "variable", None)) in names}
            nearest.update(own)
            return bool(own)

        _walk(nodes, is_output)
        return nearest

    def _place(self, name: str, lists: Iterable[str]) -> str | None:
        """Return the name of a module inside a block, or None if it is in none.

        The name has `*` for each item of a collection from which tokens choose: all experts of a block have one name.
        """
        for blocks in lists:
            if name.startswith(f"{blocks}."):
                index, *path = name[len(blocks) + 1 :].split(".")
                module = self.model.get_submodule(f"{blocks}.{index}")
                place = [blocks, index]
                for child in path:
                    around, module = module, getattr(module, child)
                    place.append("*" if _count_alike(around, type(module)) in self.choices - {1} else child)
                return ".".join(place) if path else None
        return None

    def _is_router(self, name: str, lists: Collection[str]) -> bool:
        """Whether outputs of the layer are compared, one for each expert that a module around it in the block holds."""
        outputs = features(self.linear[name])[1]
        around = name.rpartition(".")[0]
        while name in self.selecting and self._place(around, lists) is not None:
            if any(_experts(module) == outputs for module in self.model.get_submodule(around).modules()):
                return True
            around = around.rpartition(".")[0]
        return False

    def _is_behind_kernel(self, name: str) -> bool:
        """Whether the layer belongs to a state-space mixer and is not the first that it calls."""
        owner = name.rpartition(".")[0]
        if not {"A_log", "D"} <= self.model.get_submodule(owner)._parameters.keys():  # decay and skip, by Mamba's names
            return False
        return name != next(one for one in self.called if one.rpartition(".")[0] == owner)


class _Selections(TorchFunctionMode):
    """Notes the tensors of which the largest elements are looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Any] = []
        self.choices: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("topk", "argmax", "max", "sort", "argsort"):
            compared = [one for one in args if isinstance(one, Tensor) and one.grad_fn is not None]
            self.nodes += [one.grad_fn for one in compared]
            self.choices |= {one.shape[-1] for one in compared if one.dim()}
        return func(*args, **(kwargs or {}))


def _walk(nodes: Iterable[Any], stop: Callable[[Sequence[Any]], bool]) -> None:
    """Visit the nodes of a graph that these depend on; not those before a node for whose predecessors `stop` holds."""
    waiting = list(nodes)
    seen = set(waiting)
    while waiting:
        before = [node for node, _ in waiting.pop().next_functions if node is not None]
        if not stop(before):
            waiting += [node for node in before if node not in seen]
            seen.update(before)


def _leaves_behind(output: Tensor) -> set[int]:
    """Return the ids of the tensors that require a gradient and that `output` depends on."""
    leaves: set[int] = set()

    def note(before: Sequence[Any]) -> bool:
        leaves.update(id(node.variable) for node in before if hasattr(node, "variable"))
        return False

    _walk([output.grad_fn], note)
    return leaves


def _logits(output: Any) -> Tensor:
    """Return the logits, or the last hidden states of a model without a head."""
    for name in ("logits", "last_hidden_state"):
        tensor = getattr(output, name, None)
        if isinstance(tensor, Tensor):
            return tensor
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _lists_of_blocks(model: nn.Module) -> list[str]:
    """Return the names of the outermost lists of modules that hold linear layers, without being such layers."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(f"{one}.") for one in found):
            continue
        if any(not is_linear(item) and any(map(is_linear, item.modules())) for item in module):
            found.append(name)
    return found


def _count_alike(module: nn.Module, kind: type) -> int:
    """Return how many items of this class a list or dictionary of modules has; 0 for any other module."""
    collects = isinstance(module, nn.ModuleList | nn.ModuleDict)
    return sum(type(item) is kind for item in module.children()) if collects else 0


def _experts(module: nn.Module) -> int:
    """Return how many experts a module holds: the length of a collection, or the number of matrices in a weight."""
    weights = [] if isinstance(module, nn.modules.conv._ConvNd) else module._parameters.values()
    stacked = [len(one) for one in weights if one is not None and one.dim() == 3 and min(one.shape[1:]) > 1]
    return max([_count_alike(module, type(item)) for item in module.children()] + stacked, default=0)
