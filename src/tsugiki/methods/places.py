"""Find the layers and modules for (IA)³ and bottleneck adapters in a model without a row in `model.architectures`.

They are found by structure, in the graph of one pass through a copy of the model without weights
(`tsugiki.lora.trace`):

    attention        softmax(q kᵀ) v: the layers before the second factor of either product compute keys and values
    last layer       a layer whose input comes from other layers of its block, not from the residual stream, and on
                     which no layer of the block and no attention depends: its output is added to the stream
    feed-forward     a last layer whose input is an elementwise activation of the outputs of its block's layers
    sub-layer        the outermost module that returns the output of a last layer, or of experts, without the stream
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.autograd.function import BackwardCFunction

from tsugiki.lora.structure import default_layers, place_of
from tsugiki.lora.trace import Call, Node, Trace, structure_key, trace

# Beginnings of the names of autograd's nodes.
_PRODUCTS = ("Bmm", "Baddbmm")
_ACTIVATIONS = (
    *("Elu", "Erf", "Expm1", "Gelu", "Hardtanh", "LeakyRelu"),
    *("Mish", "Relu", "Sigmoid", "Silu", "Softplus", "Tanh"),
)
_NOT_BY_ELEMENT = (
    *_PRODUCTS,
    *("Addmm", "Convolution", "CopySlices", "Cumsum", "Embedding", "Gather"),
    *("Index", "Mm", "Scatter", "Select", "Softmax", "Stack"),
)


@dataclass
class Places:
    """Names of layers and modules, in the model before any graft."""

    keys_and_values: list[str] = field(default_factory=list)
    """The layers whose outputs are keys or values of attention; a layer may compute queries as well."""
    feedforward_ends: list[str] = field(default_factory=list)
    """The last layer of each feed-forward network."""
    attention: list[str] = field(default_factory=list)
    """The modules whose output is what attention, or another mixer of tokens, adds to the residual stream."""
    feedforward: list[str] = field(default_factory=list)
    """The modules whose output is what a feed-forward network adds to the residual stream."""


def places_of(model: nn.Module) -> Places:
    """Return the places in a model of transformers; its weights are not used, and it is not changed.

    Raises:
        TsugikiError: as for `tsugiki.lora.structure.default_layers`.
    """
    key = structure_key(model)
    if key not in _known:
        _known[key] = _find_places(trace(model), default_layers(model))
    return _known[key]


_known: dict[Any, Places] = {}


def _find_places(run: Trace, layers: list[str]) -> Places:
    attention = _attention_layers(run)
    inner = {call.name: found for call in run.calls if (found := _inner(run, call)) is not None}
    read = {name for found in inner.values() for name in found.layers}
    ends = {name: found.kind for name, found in inner.items() if name not in read | attention.all}
    feedforward_places = {place_of(run, name) for name, kind in ends.items() if kind == "feed-forward"}
    places = Places(
        keys_and_values=[name for name in layers if name in attention.keys | attention.values],
        feedforward_ends=[name for name in layers if place_of(run, name) in feedforward_places],
    )
    blocks = dict.fromkeys(block for name in layers if (block := run.block_of(name)) is not None)
    for name in (sublayer for block in blocks for sublayer in _sublayers(run, block, block, ends)):
        kinds = {kind for end, kind in ends.items() if end == name or end.startswith(f"{name}.")}
        if "feed-forward" in kinds or not kinds:  # experts have no last layer
            places.feedforward.append(name)
        elif "mixer" in kinds:
            places.attention.append(name)
    return places


@dataclass
class _AttentionLayers:
    queries: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)

    @property
    def all(self) -> set[str]:
        return self.queries | self.keys | self.values


def _attention_layers(run: Trace) -> _AttentionLayers:
    """Return the layers before the factors of softmax(q kᵀ) v."""
    found = _AttentionLayers()
    for product in run.every_node():
        if not product.name().startswith(_PRODUCTS):
            continue
        probabilities, values = _factors(product)
        before = run.before([probabilities], _PRODUCTS)
        softmaxes = [node for node in before if node.name().startswith("Softmax")]
        if softmaxes:
            found.values |= run.nearest([values])
        for scores in run.before(softmaxes, _PRODUCTS):
            if scores.name().startswith(_PRODUCTS):
                queries, keys = _factors(scores)
                found.queries |= run.nearest([queries])
                found.keys |= run.nearest([keys])
    return found


def _factors(product: Node) -> tuple[Node | None, Node | None]:
    """Return the nodes that compute the two factors of a batched product of matrices."""
    first, second = product.next_functions[-2:]
    return first[0], second[0]


@dataclass(frozen=True)
class _Inner:
    """The input of a layer that does not read the residual stream."""

    layers: set[str]
    """The layers of its block on which the input depends."""
    kind: Literal["feed-forward", "mixer", ""]
    """feed-forward: an elementwise activation of their outputs; mixer: not an elementwise function of them; empty:
    an elementwise function without an activation."""


def _inner(run: Trace, call: Call) -> _Inner | None:
    """Return the input of a layer; None if it is the residual stream, from the embedding and other blocks."""
    block = run.block_of(call.name)
    if block is None:
        return None
    stream = run.inputs.get(block)
    read: set[str] = set()
    activated, by_element = False, True
    for node in run.before([call.input]):
        layers = run.layers_at(node)
        if node is stream or any(run.block_of(layer) != block for layer in layers):
            return None
        read |= layers
        if not layers:
            # A custom autograd function, such as BLOOM's activation, counts as one.
            activated |= node.name().startswith(_ACTIVATIONS) or isinstance(node, BackwardCFunction)
            by_element &= not node.name().startswith(_NOT_BY_ELEMENT)
    if not read:
        return None
    return _Inner(read, "mixer" if not by_element else "feed-forward" if activated else "")


def _sublayers(run: Trace, name: str, block: str, ends: Collection[str]) -> Iterator[str]:
    """Yield the outermost modules in a block whose output is added to the residual stream."""
    module = run.model.get_submodule(name)
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or name == block or _carries_stream(run, name, block):
        for child, _ in module.named_children():
            yield from _sublayers(run, f"{name}.{child}", block, ends)
        return
    given = run.nearest([run.outputs.get(name)])
    if name in ends or any(end in ends and end.startswith(f"{name}.") for end in given) or _holds_experts(module):
        yield name


def _carries_stream(run: Trace, name: str, block: str) -> bool:
    """Return whether a module returns a sum in which the input of its block is a term."""
    stream = run.inputs.get(block)
    return stream is not None and any(node is stream for node in run.before([run.outputs.get(name)], _NOT_BY_ELEMENT))


def _holds_experts(module: nn.Module) -> bool:
    return any(
        weight.dim() == 3
        for part in module.modules()
        if not isinstance(part, nn.modules.conv._ConvNd)
        for weight in part._parameters.values()
        if weight is not None
    )
