"""Experts on a processor in 16 bits: every expert multiplies a multiple of eight rows.

oneDNN compiles a kernel for each number of rows, and keeps up to 1,024. The rows that a router sends to an expert
differ in every step, so memory grew with the steps. Tokens of zeros, with weight 0 and whose results are dropped, fill
up the rows of each expert, and transformers' own function computes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel
from tsugiki.model.undo import Undo

_NAME, _PLAIN = "tsugiki", "grouped_mm"  # in transformers' table of implementations
_ROWS, _MANY_ROWS = 8, 64
"""Up to 64 rows are filled up to a multiple of 8, up to 128 to one of 16, up to 256 to one of 32, and so on. So there
are few different numbers of rows, and few rows are added."""
_FEWEST_TOKENS = 32  # with fewer, as while text is generated, there are few numbers of rows


def use_even_rows(model: PreTrainedModel, undo: list[Undo]) -> None:
    """Let the experts of a model on a processor compute by `experts_forward`, in place."""
    if model.device.type == "cpu" and getattr(model.config, "_experts_implementation", None) == _PLAIN:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(_NAME, experts_forward)
        undo.append(partial(model.set_experts_implementation, _PLAIN))
        model.set_experts_implementation(_NAME)


def experts_forward(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute transformers' experts for `hidden`, [tokens, width], with even numbers of rows.

    Token t has the experts chosen[t] with the weights weights[t], [tokens, experts of a token].
    """
    from transformers.integrations.moe import grouped_mm_experts_forward

    tokens, of_token = chosen.shape
    if tokens >= _FEWEST_TOKENS and hidden.device.type == "cpu" and hidden.dtype.itemsize == 2:
        counts = torch.bincount(chosen.flatten(), minlength=experts.num_experts)
        missing = -counts % (_ROWS * 2 ** ((counts - 1) // _MANY_ROWS).float().frexp().exponent)
        filling = torch.arange(len(missing)).repeat_interleave(missing)
        filling = F.pad(filling, (0, -len(filling) % of_token)).view(-1, of_token)
        more = (0, 0, 0, len(filling))
        hidden, chosen, weights = F.pad(hidden, more), torch.cat([chosen, filling]), F.pad(weights, more)
    computed: Tensor = grouped_mm_experts_forward(experts, hidden, chosen, weights)
    return computed[:tokens]
