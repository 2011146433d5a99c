"""What becomes of a GPT-2 that is grafted as the chapter does it: rebuilt here in our own words, as small as can be.

Every `nn.Linear` gets a branch beside it, every attention gives way to a new one of four new layers, and nothing
else is changed.
"""

import math

import pytest
import torch
from gpt2 import count_parameters
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from tests.tiny import ids, logits, tiny_model


class Pair(nn.Module):
    """A layer, and a branch scaled by alpha alone; the second factor starts at zero."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer, self.alpha = layer, alpha
        self.down = nn.Parameter(torch.randn(layer.in_features, rank))
        self.up = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.alpha * (x @ self.down @ self.up)


class NewAttention(nn.Module):
    """Four new layers with pairs, heads, a softmax, and no mask; takes the hidden states and nothing else."""

    def __init__(self, width: int, heads: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (Pair(nn.Linear(width, width), rank, alpha) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        out: Tensor = self.o((weights @ v).transpose(1, 2).flatten(2))
        return out


def graft_as_the_chapter_does(model: GPT2LMHeadModel, rank: int = 8, alpha: float = 16) -> GPT2LMHeadModel:
    """Freeze, then replace. (The chapter's function ends without a return; this one returns, to have something.)"""
    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        parent_name, _, child = name.rpartition(".")
        if isinstance(module, nn.Linear):
            setattr(model.get_submodule(parent_name), child, Pair(module, rank, alpha))
        elif isinstance(module, GPT2Attention):
            new = NewAttention(module.embed_dim, module.num_heads, rank, alpha)
            setattr(model.get_submodule(parent_name), child, new)
    return model


def test_it_trains_29_346_440_parameters():
    with torch.device("meta"):
        model = graft_as_the_chapter_does(GPT2LMHeadModel(GPT2Config()))
    assert count_parameters(model)[0] == 29_346_440
    trains = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    whole = sum(size for name, size in trains.items() if ".attn." in name and ".layer." in name)
    assert whole == 12 * 4 * (768 * 768 + 768), "new weights and biases, 97 % of all that trains"


def test_the_head_is_the_only_nn_linear_of_gpt2():
    assert [name for name, module in tiny_model().named_modules() if isinstance(module, nn.Linear)] == ["lm_head"]


def test_its_forward_raises_a_type_error():
    model = graft_as_the_chapter_does(tiny_model())
    with pytest.raises(TypeError, match=r"NewAttention\.forward\(\) got an unexpected keyword argument"):
        model(input_ids=ids())


class TakesAnything(nn.Module):
    """Mends the call, so that one can see what else there is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **_: object) -> tuple[Tensor, None]:
        return self.inner(x), None


def test_with_the_call_mended_the_pretrained_attention_is_lost_and_later_tokens_change_earlier_logits():
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


def test_both_factors_random_change_the_weight_before_training():
    torch.manual_seed(0)
    weight = torch.randn(768, 768)
    update = 16 * torch.randn(768, 8) @ torch.randn(8, 768)
    assert update.std() > 40 * weight.std(), "alpha 16, rank 8: sqrt(8) · 16 = 45 times the weight"
