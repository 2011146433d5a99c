"""A batch in which each row has its own adapter.

    with mixed_batch(model, ["poet", "lawyer", None]):     # None, or PEFT's "__base__", selects the base
        model.generate(**three_prompts)

Row i of a linear layer is  y_i = W x_i + b + s_i · B_i A_i x_i.  The frozen product is computed once for the whole
batch; see `row_products` for the low-rank part. Neighbouring rows with the same adapter share a pair.

This requires that each layer gets the rows in the order of the batch: [rows, tokens, in], or with rows and
tokens in one dimension. A few models (XLNet) compute with [tokens, rows, width]. A forward pass of two rows of three
tokens shows which order a layer has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import gcd
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.fast.row_products import Place, RowPairs, plain_rows, rows_product
from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.graft import BASE_ROW
from tsugiki.lora.hold import Graft, disable_adapter, find_adapter, require_state
from tsugiki.lora.layer import LoraLinear
from tsugiki.lora.pair import Grafted, LowRank
from tsugiki.model.inference import evaluating
from tsugiki.model.linear import is_hooked
from tsugiki.model.undo import Undo, remove_hook, replace_forward, set_attribute, undo_all
from tsugiki.model.ungrafted import unwrapped

_ROWS, _TOKENS = 2, 3  # the shape of the trial forward pass that shows the order


@contextmanager
def mixed_batch(
    model: nn.Module, adapter_names: Sequence[str | None], known: dict[LowRank, Place] | None = None
) -> Iterator[None]:
    """Within the `with` block, row i of a batch is computed with the LoRA adapter called `adapter_names[i]`.

    This is for inference: nothing trains, and the model must be in evaluation mode. Where `model.generate` makes n · k
    rows of n, for beam search and `num_return_sequences`, each of n names selects the adapter of k neighbouring rows.
    Within the block no adapter can be added, removed or activated. After the block, the adapter that was active before
    is active again. A deep copy of the model that is made within the block computes with these rows until it is
    ungrafted.

    Args:
        model: a grafted model.
        adapter_names: names of LoRA adapters in the model; None or "__base__" for a row of the base.
        known: the addresses of the factors of each pair, if they are to be kept from one block to the next, in which
            the tensors of these adapters must not be replaced.

    Raises:
        TsugikiError: there is no adapter of that name, it is not a LoRA adapter or trains more than pairs, an adapter
            is merged, another thread is in such a block, or a layer does not get the rows in the order of the batch.
            Within the block: the batch has another number of rows, the model is in training mode, gradients are
            recorded, or another thread calls the model.
    """
    model = unwrapped(model)
    rows = _mixed_rows(model, adapter_names, known)
    state = require_state(model)
    outer = state.mixed_rows
    with disable_adapter(model):
        _check_order_of_rows(model, state, rows)
        try:
            state.mixed_rows = rows
            rows.attach(state.attached)
            yield
        finally:
            undo_all(state.attached)
            state.mixed_rows = outer


@dataclass
class RowAdapters:
    """The grafted layers of a model, each with the pairs of the rows."""

    model: nn.Module
    names: int
    """The number of adapter names that `mixed_batch` got."""
    layers: list[tuple[Grafted, "LayerRowAdapters"]]
    """Empty if all rows are rows of the base."""
    generating: bool = False
    """Whether `model.generate` runs, which may compute several rows for each name."""

    def attach(self, undo: list[Undo]) -> None:
        """Let the layers compute each row with its pair; functions that undo this are appended to `undo`."""
        for layer, rows in self.layers:
            replace_forward(layer, partial(_forward, layer, rows), undo)
        check = partial(_check_input, self)
        undo.append(partial(remove_hook, self.model, check))
        self.model.register_forward_pre_hook(check, with_kwargs=True)
        if (generate := getattr(self.model, "generate", None)) is not None:
            set_attribute(self.model, "generate", partial(_generate, self, generate), undo)


@dataclass
class LayerRowAdapters:
    """The pairs that the rows of a batch use in one layer."""

    path: str
    """The layer's name."""
    names: int
    pairs: RowPairs
    thread: int = field(default_factory=get_ident)
    """The thread that is in the block."""


def _mixed_rows(
    model: nn.Module, adapter_names: Sequence[str | None], known: dict[LowRank, Place] | None
) -> RowAdapters:
    names = [None if name == BASE_ROW else name for name in adapter_names]
    if isinstance(adapter_names, str) or not names or not all(isinstance(name, str | None) for name in names):
        raise TsugikiError(
            "adapter_names is {adapter_names!r}; give a list with a name or None for each row of the batch",
            adapter_names=adapter_names,
        )
    adapters = {name: _find_lora_adapter(model, name) for name in names if name is not None}
    neighbours = gcd(*(len(list(run)) for _, run in groupby(names)))
    groups = [None if name is None else adapters[name] for name in names[::neighbours]]
    layers = []
    for path in dict.fromkeys(path for adapter in adapters.values() for path in adapter.pairs):
        if "experts" in path.split("."):
            raise TsugikiError(
                "{path} belongs to one of several experts, which get tokens of several rows mixed; a mixed "
                "batch is not possible with adapters on experts",
                path=path,
            )
        layer: Any = model.get_submodule(path)
        pairs = [None if adapter is None else adapter.pairs.get(path) for adapter in groups]
        layers.append((layer, LayerRowAdapters(path, len(names), RowPairs(pairs, known))))
    return RowAdapters(model, len(names), layers)


def _find_lora_adapter(model: nn.Module, name: str) -> LoraAdapter:
    adapter = find_adapter(model, name)
    if not isinstance(adapter, LoraAdapter):
        kind = type(adapter.config).__name__
        raise TsugikiError(
            "{name!r} is not a LoRA adapter ({kind}) and cannot be used for single rows; set_adapter activates "
            "it for the whole batch",
            name=name,
            kind=kind,
        )
    if others := adapter.others:
        raise TsugikiError(
            "{name!r} adapts {path} ({count} such), which is not possible for single rows; set_adapter activates "
            "it for the whole batch",
            name=name,
            path=others[0],
            count=len(others),
        )
    return adapter


def _wrong_number(where: str, rows: int, names: int) -> TsugikiError:
    message = _(
        "{path} got {rows} rows, but {names} adapter names were given; give a name for each row of the batch",
        path=where,
        rows=rows,
        names=names,
    )
    return TsugikiError(message)


def _check_input(rows: RowAdapters, model: nn.Module, args: Any, given: Mapping[str, Any]) -> None:
    """Check the number of rows in the input of the model or of its `generate`.

    The layers cannot check it: some of them get rows and tokens in one dimension.
    """
    inputs = (given.get(name) for name in (getattr(model, "main_input_name", ""), "inputs", "inputs_embeds"))
    for tensor in (*args[:1], *inputs):
        if isinstance(tensor, Tensor):
            if len(tensor) % rows.names or (len(tensor) > rows.names and not rows.generating):
                raise _wrong_number(type(model).__name__, len(tensor), rows.names)
            return


def _generate(rows: RowAdapters, generate: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """Generate; within the block this replaces the model's own `generate`."""
    _check_input(rows, rows.model, args, given)
    rows.generating = True
    try:
        return generate(*args, **given)
    finally:
        rows.generating = False


def _forward(layer: Grafted, rows: LayerRowAdapters, x: Tensor) -> Tensor:
    """Compute a layer in a mixed batch; within the block this replaces the layer's own `forward`."""
    compiling = torch.compiler.is_compiling()  # a compiler fuses the definition itself
    if not compiling and get_ident() != rows.thread:
        raise TsugikiError(
            "another thread is in a `mixed_batch` block of this model, whose adapters this call would get; "
            "wait until it has left the block (threading.Lock), or give each thread a copy of the model"
        )
    if layer.training:
        raise TsugikiError("a mixed batch is for inference, but the model is in training mode; call model.eval()")
    if len(x) % rows.names:
        raise _wrong_number(rows.path, len(x), rows.names)
    y: Tensor = layer.base_layer(x)
    if y.requires_grad:
        raise TsugikiError("a mixed batch is for inference, but gradients are recorded; use torch.no_grad()")
    if compiling or not isinstance(layer, LoraLinear) or x.dtype != y.dtype:
        return plain_rows(layer, rows.pairs.pairs, x, y)
    if is_hooked(layer.base_layer):
        return plain_rows(layer, rows.pairs.pairs, x, y)
    return rows_product(layer, rows.pairs, x, y.contiguous())


def _check_order_of_rows(model: Any, state: Graft, rows: RowAdapters) -> None:
    """Check once for each layer that it gets the rows in the order of the batch; only models of text are checked.

    The size of the first dimension shows the order: two rows of three tokens are [2, …], or [6, …] if rows and tokens
    are in one dimension.
    """
    unknown = {pairs.path: layer for layer, pairs in rows.layers if pairs.path not in state.in_order}
    if not unknown or not hasattr(getattr(model, "config", None), "vocab_size"):
        return
    sizes: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(partial(_note_size, sizes, path)) for path, layer in unknown.items()]
    try:
        with evaluating(model):
            model(input_ids=torch.zeros(_ROWS, _TOKENS, dtype=torch.long, device=model.device))
    except Exception:  # the model needs other inputs, so that no text is computed with it
        return
    finally:
        for hook in hooks:
            hook.remove()
    wrong = [path for path, size in sizes.items() if size not in (_ROWS, _ROWS * _TOKENS)]
    if wrong:
        raise TsugikiError(
            "{path} gets the tokens before the rows of the batch, so rows cannot have adapters of their own; "
            "use set_adapter",
            path=wrong[0],
        )
    state.in_order |= unknown.keys()


def _note_size(sizes: dict[str, int], path: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    sizes[path] = len(args[0])
