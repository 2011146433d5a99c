"""Functions to run a model without training it: evaluation mode, seeds, a fixed input, only the first blocks."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import is_ordinary
from tsugiki.model.freeze import REPACKS, repacking_layers

_PROBE_TOKENS = 16


@contextmanager
def evaluating(model: nn.Module, *, repack: bool = False) -> Iterator[None]:
    """Put `model` into evaluation mode and record no gradients within the block.

    Afterwards every submodule is in the mode that it was in, also where submodules were in different modes. `repack`
    lets layers of bitsandbytes repack their weights, which is faster and rounds them (see `model.freeze`).
    """
    modes = [(module, module.training) for module in model.modules()]
    repacking = [] if repack else repacking_layers(model)
    for layer in repacking:
        setattr(layer, REPACKS, False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in repacking:
            setattr(layer, REPACKS, True)
        model.train(modes[0][1])  # some classes do more in `train` than set the flag
        for module, training in modes:
            module.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers from `seed` within the block, and restore the generators' states afterwards.

    The generators are those of the processor and of all devices of the current accelerator.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = "cuda" if accelerator is None else accelerator.type  # without an accelerator, the default of `fork_rng`
    with torch.random.fork_rng(range(torch.accelerator.device_count()), device_type=kind):
        torch.manual_seed(seed)
        yield


def probe_ids(model: PreTrainedModel, tokens: int = _PROBE_TOKENS) -> Tensor:
    """Return a fixed row of token ids, [1, tokens], spread evenly over the model's vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    return torch.linspace(0, vocabulary - 1, tokens, device=model.device).long()[None]


def probe_logits(model: nn.Module) -> Tensor | None:
    """Return the logits of `model` for `probe_ids`, [1, tokens, vocabulary], in evaluation mode.

    Both sides of an encoder-decoder model get them. Returns None for a model that takes no token ids or gives no
    logits.
    """
    if getattr(getattr(model, "config", None), "vocab_size", None) is None:
        return None
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return None
    ids = probe_ids(model)
    optional = {"decoder_input_ids": ids, "use_cache": False}
    accepted = inspect.signature(model.forward).parameters
    with evaluating(model):
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **{name: value for name, value in optional.items() if name in accepted},
        )
    logits: Tensor | None = getattr(output, "logits", None)
    return logits


def last_hidden_states(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the hidden states before the output head, [rows, tokens, width].

    For long rows they take less memory than logits.
    """
    hidden: Tensor = model.base_model(**inputs, use_cache=False)[0]
    return hidden


def same_to_rounding(a: Tensor, b: Tensor, at_least: float = 0.0) -> bool:
    """Return whether `a` and `b` differ by no more than the results of two correct kernels in the dtype of `b`.

    The difference is measured by its norm, relative to the norm of `b`. In 16 bits, the logits of a real model differ
    between two correct attention kernels by up to 5 % of the largest logit, but only by 1 to 3 % of their norm; a wrong
    mask changes the norm by tens of per cent. It is computed on the processor, since MPS has no float64. A difference
    of `at_least` times the norm is allowed in any dtype.
    """
    tolerance = max(at_least, 1e-3 if b.dtype in (torch.float32, torch.float64) else 5e-2)
    exact_a, exact_b = a.cpu().double(), b.cpu().double()
    return float((exact_a - exact_b).norm()) <= tolerance * float(exact_b.norm())


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_LARGE = 50_000_000
"""The number of parameters from which a probe uses only some blocks, because several forward passes take a second."""


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of the decoder: the members of the largest list of modules; none if there is no list."""
    return list(_largest_list(model) or ())


def on_first_blocks(
    probe: Callable[Concatenate[Any, Arguments], Result],
) -> Callable[Concatenate[Any, Arguments], Result]:
    """Decorate a function that probes a model: of a large model it gets only some blocks, with all kinds.

    The probed property must be the same in all blocks of a kind. If the function raises an error with some of the
    blocks, it is called again with all of them.
    """

    @wraps(probe)
    def call(model: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        blocks = _largest_list(model)
        count = _count_first_blocks(model, blocks) if blocks is not None else 0
        if blocks is not None and count < len(blocks) and sum(p.numel() for p in model.parameters()) >= _LARGE:
            try:
                with _shortened(model, blocks, count):
                    return probe(model, *args, **kwargs)
            except BaseException as error:
                if not is_ordinary(error):
                    raise
        return probe(model, *args, **kwargs)

    return call


def _largest_list(model: nn.Module) -> nn.ModuleList | None:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda module: sum(p.numel() for p in module.parameters()), default=None)


def _count_first_blocks(model: Any, blocks: nn.ModuleList) -> int:
    """Return the smallest number of first blocks that includes every kind of attention, and at least 2."""
    config = getattr(model, "config", None)
    kinds = getattr(config.get_text_config(), "layer_types", None) if config is not None else None
    if not isinstance(kinds, list | tuple) or len(kinds) != len(blocks):
        kinds = [type(block) for block in blocks]
    return max(2, 1 + max(kinds.index(kind) for kind in set(kinds))) if len(blocks) else 0


@contextmanager
def _shortened(model: Any, blocks: nn.ModuleList, count: int) -> Iterator[None]:
    """Let the model have only its first `count` blocks within the `with` block."""
    places = [
        (module, name) for module in model.modules() for name, child in module._modules.items() if child is blocks
    ]
    config = model.config.get_text_config()
    number = config.num_hidden_layers
    first = nn.ModuleList(list(blocks)[:count])
    first.training = blocks.training
    try:
        for module, name in places:
            module._modules[name] = first
        config.num_hidden_layers = count
        yield
    finally:
        for module, name in places:
            module._modules[name] = blocks
        config.num_hidden_layers = number
