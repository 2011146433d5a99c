"""The effects of applying LoRA to GPT-2 as the chapter's code does, reproduced in a short implementation.

Every `nn.Linear` gets a LoRA branch, every attention is replaced by a new one with four new layers, and nothing else
changes.
"""

import math

import audit
import pytest
import torch
from gpt2 import count_parameters
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from tests.tiny import ids, logits, tiny_model


class WithLoRA(nn.Module):
    """A layer with a LoRA branch scaled by alpha; the second factor is initialised with zeros."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.alpha = layer, alpha
        self.down = nn.Parameter(torch.randn(layer.in_features, rank))
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.alpha * (x @ self.down @ self.up)


class NewAttention(nn.Module):
    """Self-attention with four new layers with LoRA, without a mask; its only argument is the hidden states."""

    def __init__(self, width: int, heads: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (WithLoRA(nn.Linear(width, width), rank, alpha) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        out: Tensor = self.o((weights @ v).transpose(1, 2).flatten(2))
        return out


def graft_as_the_chapter_does(model: GPT2LMHeadModel, rank: int = 8, alpha: float = 16) -> GPT2LMHeadModel:
    """Freeze the model and replace its layers; return it, which the chapter's function does not do."""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent_name, _, child = name.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent_name), child, WithLoRA(module, rank, alpha))
        elif isinstance(module, GPT2Attention):
            new = NewAttention(module.embed_dim, module.num_heads, rank, alpha)
            setattr(model.get_submodule(parent_name), child, new)
    return model


def test_it_trains_29_346_440_parameters():
    with torch.device("meta"):
        model = graft_as_the_chapter_does(GPT2LMHeadModel(GPT2Config()))
    counted = audit.chapters_attention(audit.SMALL) + audit.chapters_head(audit.SMALL)
    assert count_parameters(model)[0] == counted == 29_346_440
    trains = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    whole = sum(size for name, size in trains.items() if ".attn." in name and ".layer." in name)
    assert whole == 12 * 4 * (768 * 768 + 768), "new weights and biases, 97 % of the trainable parameters"


def test_its_forward_raises_a_type_error():
    model = graft_as_the_chapter_does(tiny_model())
    with pytest.raises(TypeError, match=r"NewAttention\.forward\(\) got an unexpected keyword argument"):
        model(input_ids=ids())


class TakesAnything(nn.Module):
    """Accepts the arguments of a GPT-2 block, so that the other effects can be tested."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **_: object) -> tuple[Tensor, None]:
        return self.inner(x), None


def test_with_corrected_arguments_the_pretrained_attention_is_lost_and_later_tokens_change_earlier_logits():
    model = tiny_model()
    pretrained = logits(model)
    graft_as_the_chapter_does(model)
    for block in model.transformer.h:
        block.attn = TakesAnything(block.attn)
    assert not torch.isclose(logits(model), pretrained).all(), "before a single step of training"

    other = ids()
    other[:, -1] = (other[:, -1] + 1) % 96
    changed = (logits(model, other) - logits(model)).abs().amax(dim=(0, 2)) > 1e-6  # [tokens]
    assert changed[:-1].all()
