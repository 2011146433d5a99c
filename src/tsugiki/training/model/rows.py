"""How many tokens a row of a run has, and how many rows are computed at once."""

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.model.context import context_length

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
