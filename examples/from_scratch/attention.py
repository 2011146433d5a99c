"""Step 3: self-attention with LoRA, built from a pretrained attention layer.

Three properties make it equivalent to GPT-2's attention:

- it wraps the pretrained projections; new projections would lose what the model has learned;
- it is causal: a token attends to itself and to earlier tokens, never to the token that it has to predict;
- before training its output equals that of the pretrained attention.

GPT-2 computes query, key and value with one layer, `c_attn`, width -> 3 · width. One pair of factors adapts all three:
A is shared, and each has a third of the rows of B.

    python examples/from_scratch/attention.py
"""

import math

import torch
from linear import LinearWithLoRA
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention


class SelfAttentionWithLoRA(nn.Module):
    """Causal self-attention with the projections of a pretrained `GPT2Attention`, each with a LoRA branch.

    The code follows the formula softmax(Q Kᵀ / √d) V and omits dropout and the key-value cache. In a real model it is
    simpler to wrap the projections in place, as `gpt2.py` does, and to leave the attention module unchanged.

    Args:
        attention: the pretrained layer; its `c_attn` and `c_proj` are used and frozen.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
    """

    def __init__(self, attention: GPT2Attention, rank: int, alpha: float) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.c_attn = LinearWithLoRA(attention.c_attn, rank, alpha)  # width -> 3 · width: query, key, value
        self.c_proj = LinearWithLoRA(attention.c_proj, rank, alpha)  # width -> width: the output

    def forward(self, x: Tensor) -> Tensor:
        """Compute the attention output; [batch, tokens, width] -> [batch, tokens, width]."""
        q, k, v = self.c_attn(x).chunk(3, dim=-1)  # each [batch, tokens, width]
        q, k, v = self.split(q), self.split(k), self.split(v)  # each [batch, heads, tokens, d]

        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [batch, heads, tokens, tokens]
        weights = scores.masked_fill(future(x), -math.inf).softmax(dim=-1)  # rows sum to 1; later tokens have weight 0

        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [batch, tokens, heads, d] -> [batch, tokens, width]
        y: Tensor = self.c_proj(mixed)
        return y

    def split(self, x: Tensor) -> Tensor:
        """Reshape [batch, tokens, width] to [batch, heads, tokens, d], where width = heads · d."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def future(x: Tensor) -> Tensor:
    """Return the causal mask [tokens, tokens]: True at [i, j] for j > i, where token i may not attend to token j."""
    tokens = x.shape[1]
    return torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(diagonal=1)


@torch.no_grad()
def main() -> None:
    """Compare with the attention of transformers, then check that later tokens do not influence earlier outputs."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_head=4, attn_implementation="eager")
    pretrained = GPT2Attention(config, layer_idx=0).eval()
    x = torch.randn(2, 10, 64)
    mask = torch.zeros(10, 10).masked_fill(future(x), -math.inf)  # that layer takes its mask as an argument
    theirs = pretrained(x, attention_mask=mask)[0]

    ours = SelfAttentionWithLoRA(pretrained, rank=8, alpha=16)
    print("equal to the attention of transformers before training:", torch.allclose(ours(x), theirs, atol=1e-6))

    later = x.clone()
    later[:, 7:] = torch.randn(2, 3, 64)
    same = torch.isclose(ours(later), ours(x), atol=1e-6).all(dim=-1).all(dim=0)  # [tokens]
    print("changed tokens 7, 8 and 9 of the input; unchanged in the output:", same.nonzero().flatten().tolist())


if __name__ == "__main__":
    main()
