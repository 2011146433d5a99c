"""Dependencies between layers, read from the graph that autograd records while a few tokens run through the model.

The model is a copy without weights (`lora.weightless`), and there is no backward pass.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.weightless import run, weightless_copy
from tsugiki.model.linear import features, is_conv1d, is_linear

Node: TypeAlias = Any
"""A node of the graph of autograd, such as `tensor.grad_fn`. It depends on its `next_functions`."""


def trace(model: nn.Module) -> "Trace":
    """Run a copy of a model of transformers without weights, and return the dependencies between its layers.

    Raises:
        TsugikiError: the model cannot be built from its config, or does not run on token ids.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        raise TsugikiError(
            _("{kind} is not a model of transformers, so its layers must be named").format(kind=type(model).__name__)
        )
    try:
        return Trace(weightless_copy(type(model), config))
    except Exception as error:  # any error of the model's own code
        reason = str(error).partition("\n")[0]
        raise TsugikiError(
            _("the layers of {kind} could not be found by running it without weights ({error}: {reason})").format(
                kind=type(model).__name__, error=type(error).__name__, reason=reason
            )
        ) from error


def structure_key(model: Any) -> tuple[type, str] | None:
    """Return a key under which the trace of a model can be kept: its class and its config as JSON.

    Returns None if the model has no config of transformers.
    """
    config: Any = getattr(model, "config", None)
    return (type(model), config.to_json_string(use_diff=False)) if hasattr(config, "to_json_string") else None


@dataclass(frozen=True)
class Call:
    """A call of a linear layer."""

    name: str
    input: Node | None
    """The node that computes its input; None if the input requires no gradient."""


class Trace:
    """The graphs of two forward passes through a model: in evaluation mode, which is kept, and in training mode."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.linear = {name: layer for name, layer in model.named_modules() if is_linear(layer)}
        self.lists = _lists_of_blocks(model)
        """The names of the outermost lists of modules that hold linear layers."""
        # A tensor of zeros is added to the output of each layer. Whatever depends on the layer depends on this tensor.
        added = {
            name: torch.zeros(features(layer)[1], device="cpu", requires_grad=True)
            for name, layer in self.linear.items()
        }
        self._layer_of = {id(tensor): name for name, tensor in added.items()}
        self.calls: list[Call] = []
        """The calls of linear layers in evaluation, in their order."""
        self.inputs: dict[str, Node | None] = {}
        """Module name -> the node of the first tensor among its arguments."""
        self.outputs: dict[str, Node | None] = {}
        """Module name -> the node of the first tensor that it returns."""
        for name, layer in self.linear.items():
            layer.forward = partial(self._output, layer, added[name], name)
        hooks = [
            module.register_forward_hook(partial(self._note, name), with_kwargs=True)
            for name, module in model.named_modules()
            if self.block_of(name) is not None
        ]
        comparisons = _Comparisons()
        with comparisons:
            logits = _logits(run(model.eval()))
        self.compared = self.nearest(comparisons.nodes)
        """The layers whose outputs are compared with each other, such as routers."""
        self.choices = comparisons.choices
        """The numbers of outputs that are compared, such as the number of experts."""
        for hook in hooks:
            hook.remove()
        calls, self.calls = self.calls, []
        in_evaluation, in_training = _leaves(logits), _leaves(_logits(run(model.train())))
        self.calls = calls
        self.live = {name for name, tensor in added.items() if id(tensor) in in_evaluation}
        """The layers on whose outputs the logits depend."""
        weights = {name: id(layer.weight) for name, layer in self.linear.items()}
        self.bypassed = {name for name, weight in weights.items() if weight in in_evaluation | in_training}
        """The layers on whose weights the logits depend otherwise than through calls of the layer."""
        self.logits: Node | None = logits.grad_fn

    def every_node(self) -> Iterator[Node]:
        """Yield the nodes that the logits depend on."""
        return _walk([self.logits], lambda _: False)

    def before(self, nodes: Iterable[Node | None], operations: tuple[str, ...] = ()) -> Iterator[Node]:
        """Yield the nodes that `nodes` depend on, including themselves, back to the outputs of linear layers.

        The walk also stops at nodes whose names begin with one of `operations`.
        """
        return _walk(nodes, lambda node: bool(self.layers_at(node)) or node.name().startswith(operations))

    def layers_at(self, node: Node) -> set[str]:
        """Return the name of the layer whose output a node of the graph is; empty if it is not an output."""
        before = (id(getattr(function, "variable", None)) for function, _ in node.next_functions)
        return {self._layer_of[tensor] for tensor in before if tensor in self._layer_of}

    def nearest(self, nodes: Iterable[Node | None]) -> set[str]:
        """Return the layers that nodes of the graph depend on directly, not through other layers."""
        return {name for node in self.before(nodes) for name in self.layers_at(node)}

    def block_of(self, name: str) -> str | None:
        """Return the name of the block that contains a module or is the module, or None."""
        for blocks in self.lists:
            if name.startswith(f"{blocks}."):
                return f"{blocks}.{name[len(blocks) + 1 :].partition('.')[0]}"
        return None

    def _output(self, layer: nn.Module, added: Tensor, name: str, x: Tensor) -> Tensor:
        """Compute the layer's output with a detached weight, so that the graph has only other uses of the weight."""
        self.calls.append(Call(name, x.grad_fn))
        weight: Tensor = layer.weight.detach()  # type: ignore[operator]
        return F.linear(x, weight.T if is_conv1d(layer) else weight) + added

    def _note(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for kept, tensors in ((self.inputs, tree_leaves((args, kwargs))), (self.outputs, tree_leaves(output))):
            first = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
            kept[name] = None if first is None else first.grad_fn


class _Comparisons(TorchFunctionMode):
    """Records the tensors that are passed to functions which select the largest elements, such as `topk`."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.choices: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("topk", "argmax", "max", "sort", "argsort"):
            compared = [tensor for tensor in args if isinstance(tensor, Tensor) and tensor.grad_fn is not None]
            self.nodes += [tensor.grad_fn for tensor in compared]
            self.choices |= {tensor.shape[-1] for tensor in compared if tensor.dim()}
        return func(*args, **(kwargs or {}))


def _walk(nodes: Iterable[Node | None], stop: Callable[[Node], bool]) -> Iterator[Node]:
    """Yield nodes of a graph and all nodes that they depend on; the walk stops at a node for which `stop` is true."""
    waiting = [node for node in nodes if node is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        if not stop(node):
            before = [previous for previous, _ in node.next_functions if previous is not None and previous not in seen]
            waiting += before
            seen.update(before)


def _leaves(tensor: Tensor) -> set[int]:
    """Return the ids of the tensors that require a gradient and that `tensor` depends on."""
    return {id(node.variable) for node in _walk([tensor.grad_fn], lambda _: False) if hasattr(node, "variable")}


def _logits(output: Any) -> Tensor:
    """Return the logits, or the last hidden states of a model without a head."""
    for name in ("logits", "last_hidden_state"):
        tensor = getattr(output, name, None)
        if isinstance(tensor, Tensor):
            return tensor
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _lists_of_blocks(model: nn.Module) -> list[str]:
    """Return the names of the outermost lists with an item that contains linear layers and is not itself one."""
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if any(not is_linear(item) and any(map(is_linear, item.modules())) for item in module):
            found.append(name)
    return found
