"""The blocks of a model: the equal parts that its hidden states pass through one after another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

from tsugiki.errors import is_ordinary

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_LARGE = 1_000_000_000
"""The number of parameters from which a probe uses only some blocks, because a forward pass takes many seconds."""


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
