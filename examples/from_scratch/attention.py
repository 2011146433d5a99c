"""Third step: self-attention with LoRA, made from one that is pretrained.

Three things make it GPT-2's attention and not merely one of the same shape:

- its projections are the pretrained ones, wrapped: new ones would have to learn again what the model knew;
- it is causal: a token sees itself and what came before, or it would be shown the very token that it is to predict;
- before training it gives what the pretrained one gives.

GPT-2 keeps the projections to query, key and value side by side in one layer, `c_attn`, width -> 3 · width. One pair
serves all three: A is shared, and B has a third for each.

    python examples/from_scratch/attention.py
"""

import math

import torch
from linear import LinearWithLoRA
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention


class SelfAttentionWithLoRA(nn.Module):
    """Causal self-attention on the projections of a pretrained `GPT2Attention`, a pair beside each.

    To be read beside the formula softmax(Q Kᵀ / √d) V: without dropout and without a cache of earlier tokens, and with
    GPT-2's own scale 1/√d. In a model, wrap the projections where they are (`gpt2.py`); the attention can then stay.

    Args:
        attention: the pretrained layer; its `c_attn` and `c_proj` are kept and frozen.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
    """

    def __init__(self, attention: GPT2Attention, rank: int, alpha: float) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.c_attn = LinearWithLoRA(attention.c_attn, rank, alpha)  # width -> 3 · width: query, key, value
        self.c_proj = LinearWithLoRA(attention.c_proj, rank, alpha)  # width -> width: the output

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, width] -> [batch, tokens, width]."""
        q, k, v = self.c_attn(x).chunk(3, dim=-1)  # each [batch, tokens, width]
        q, k, v = self.split(q), self.split(k), self.split(v)  # each [batch, heads, tokens, d]

        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # [batch, heads, tokens, tokens]
        weights = scores.masked_fill(future(x), -math.inf).softmax(dim=-1)  # rows sum to 1, nothing from the future

        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [batch, tokens, heads, d] -> [batch, tokens, width]
        y: Tensor = self.c_proj(mixed)
        return y

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, d], where width = heads · d."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def future(x: Tensor) -> Tensor:
    """What row i may not see: True at [i, j] for j > i; [tokens, tokens]."""
    tokens = x.shape[1]
    return torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(diagonal=1)


@torch.no_grad()
def main() -> None:
    """Compare with transformers' attention, and change a later token."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_head=4, attn_implementation="eager")
    pretrained = GPT2Attention(config, layer_idx=0).eval()
    x = torch.randn(2, 10, 64)
    mask = torch.zeros(10, 10).masked_fill(future(x), -math.inf)  # transformers' layer is given its mask
    theirs = pretrained(x, attention_mask=mask)[0]

    ours = SelfAttentionWithLoRA(pretrained, rank=8, alpha=16)
    print("equal to transformers' attention before training:", torch.allclose(ours(x), theirs, atol=1e-6))

    later = x.clone()
    later[:, 7:] = torch.randn(2, 3, 64)
    same = torch.isclose(ours(later), ours(x), atol=1e-6).all(dim=-1).all(dim=0)  # [tokens]
    print("tokens 7, 8 and 9 changed; unchanged in the output:", same.nonzero().flatten().tolist())


if __name__ == "__main__":
    main()
