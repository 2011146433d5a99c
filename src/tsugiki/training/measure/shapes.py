"""The shapes of a run's model before its weights are loaded, its rows, and how many of them are computed at once."""

from dataclasses import dataclass

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.resolve import load_config, loading_errors
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.model.context import context_length
from tsugiki.model.meta import meta_model

SMALL_MODEL = 50_000_000
"""Models with fewer parameters are not measured before a run, neither their speed nor their memory."""


@dataclass(frozen=True)
class Shapes:
    """The model of a run without its weights."""

    config: PretrainedConfig
    model: PreTrainedModel
    """The model on torch's meta device, not grafted."""
    parameters: int
    """Number of parameters."""
    row_tokens: int
    """Tokens of a row of the run."""


def find_shapes(name: str, block_size: int | None, virtual_tokens: int) -> Shapes:
    """Return the shapes of the model with this name, and the tokens of its rows, from these settings of a run."""
    config = load_config(name)
    with loading_errors(name):
        model = meta_model(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shapes(config, model, parameters, tokens_of_row(model, block_size, virtual_tokens))


ROW_TOKENS = 512
"""Tokens of a row, unless the run sets it."""


_ADAPTER_TOKENS = 512  # per thread of a processor: enough for its products, and their activations stay small
_MODEL_TOKENS = 1024  # the gradients of each micro-batch are as large as the model, so there should be few
_ACCELERATOR_TOKENS = {"mps": 2048}  # a Mac swaps before it says that memory has run out
_OTHER_ACCELERATOR_TOKENS = 4096


def rows_of_micro_batch(tokens: int, adapter: bool, device: str = "cpu") -> int:
    """Return how many rows of `tokens` tokens each thread of a processor, or the accelerator, computes at once.

    `adapter`: an adapter trains, not the whole model. The setting `micro_batch_size` takes its place.
    """
    if device == "cpu":
        return max(1, (_ADAPTER_TOKENS if adapter else _MODEL_TOKENS) // tokens)
    return max(1, _ACCELERATOR_TOKENS.get(device, _OTHER_ACCELERATOR_TOKENS) // tokens)


def tokens_of_row(model: PreTrainedModel, block_size: int | None, prompt: int) -> int:
    """Return the number of tokens of a row, from the setting `block_size` and the context that a soft prompt leaves.

    The shapes of the model are enough. `prompt` is the length of the soft prompt; 0 if the run trains none.
    """
    available = context_length(model) - prompt
    if block_size and block_size > available:
        message = _("block_size is {size}, but the model's context is {context} tokens")
        if prompt:
            message = _(
                "block_size is {size}, but the model's context is {context} tokens, {prompt} of which the soft prompt "
                "takes: {available} are left"
            )
        raise TsugikiError(
            message.format(size=block_size, context=available + prompt, prompt=prompt, available=available)
        )
    return block_size or min(ROW_TOKENS, available)
