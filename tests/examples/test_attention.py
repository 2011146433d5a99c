"""SelfAttentionWithLoRA equals the attention of transformers before and after training, and is causal."""

from typing import Any

import pytest
import torch
from attention import SelfAttentionWithLoRA
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

TOKENS, WIDTH = 9, 32


def pretrained(implementation: str = "eager") -> Any:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=WIDTH, n_head=4, attn_implementation=implementation)
    attention = GPT2Attention(config, layer_idx=0).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)  # GPT-2's small initial weights would hide errors
    return attention


def theirs(attention: Any, x: Tensor) -> Tensor:
    """Compute the output of transformers' attention with the mask that its model would pass."""
    mask = torch.full((TOKENS, TOKENS), -torch.inf).triu(1).expand(len(x), 1, TOKENS, TOKENS)
    out: Tensor = attention(x, attention_mask=mask)[0]
    return out


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_transformers_before_training(implementation: str, x: Tensor):
    attention = pretrained(implementation)
    expected = theirs(attention, x)
    torch.testing.assert_close(SelfAttentionWithLoRA(attention, rank=4, alpha=8)(x), expected)


def test_equals_transformers_on_merged_projections_after_training(x: Tensor):
    attention = pretrained()
    before = theirs(attention, x)
    ours = SelfAttentionWithLoRA(attention, rank=4, alpha=8)
    assert (ours.c_attn.linear, ours.c_proj.linear) == (attention.c_attn, attention.c_proj)
    for layer in (ours.c_attn, ours.c_proj):
        nn.init.normal_(layer.lora.B, std=0.3)
    other = pretrained()
    other.c_attn, other.c_proj = ours.c_attn.merged(), ours.c_proj.merged()
    torch.testing.assert_close(ours(x), theirs(other, x))
    assert not torch.isclose(ours(x), before).any()
