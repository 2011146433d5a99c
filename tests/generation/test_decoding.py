"""The attention of a decoding step: the C function beside the definition, and the layers of models with it."""

from itertools import cycle

import pytest
import torch
from transformers import DynamicCache

from tests.runs import threads
from tests.tiny import in_pairs, tiny_model
from tsugiki.fast import fast_generation
from tsugiki.generation import (
    GrowingCache,
    decode_attention,
    decoding,
    plain_decode_attention,
    use_decode_attention,
)
from tsugiki.model.undo import Undo, undo_all
from tsugiki.native import native

DTYPES = [torch.float32, torch.bfloat16]
FITTING = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "granite"]
compiled = pytest.mark.skipif(native("decode_attention", "float32") is None, reason="no compiler")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def step() -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, and the cosines and sines of a token of two rows: 4 heads, 2 of keys, 8 wide."""
    return *(torch.randn(2, 1, size) for size in (32, 16, 16)), torch.ones(2, 1, 8), torch.zeros(2, 1, 8)


def caches(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[GrowingCache, GrowingCache]:
    """Two caches that hold the same random keys and values."""
    both, states = (GrowingCache(), GrowingCache()), [torch.randn(shape).to(dtype) for _ in range(2)]
    for cache in both:
        cache.update(*states, 0)
    return both


@compiled
@torch.no_grad()
@in_pairs(
    shape=[(1, 4, 4, 8, 1), (3, 6, 2, 16, 20), (2, 9, 3, 64, 70), (4, 2, 1, 50, 7)], masked=[False, True], dtype=DTYPES
)
def test_it_is_the_definition(shape, masked, dtype, monkeypatch):
    rows, heads, key_heads, width, past = shape
    one, other = caches(rows, key_heads, past, width, dtype=dtype)
    for new in range(1, 4):
        sizes = (heads * width, key_heads * width, key_heads * width)
        q, k, v = (torch.randn(rows, 1, size).to(dtype) for size in sizes)
        angle = torch.randn(rows if masked else 1, 1, width // 2).repeat(1, 1, 2)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        mask = torch.rand(rows, 1, 1, past + new) > 0.4 if masked else None
        if mask is not None:
            mask[..., -1] = True
        expected = plain_decode_attention(q, k, v, cos, sin, other.layers[0], mask, 0.3)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "plain_decode_attention", lambda *_: pytest.fail("the C function was not used"))
            found = decode_attention(q, k, v, cos, sin, one.layers[0], mask, 0.3)
        close(found, expected)
        assert torch.equal(one.layers[0].keys, other.layers[0].keys)
        assert torch.equal(one.layers[0].values, other.layers[0].values)


@compiled
@torch.no_grad()
@pytest.mark.parametrize("case", ["a mask of floats", "strides"])
def test_what_the_c_function_cannot_read_is_left_to_torch(case: str, monkeypatch: pytest.MonkeyPatch):
    (one, other), (q, k, v, cos, sin) = caches(2, 2, 5, 8), step()
    mask = torch.tensor([0.0, -1e9]).repeat(2, 3).view(2, 1, 1, 6) if case == "a mask of floats" else None
    if case == "strides":
        k, v = torch.randn(2, 1, 32)[..., ::2], torch.randn(1, 1, 16).expand(2, 1, 16)
    monkeypatch.setattr(decoding, "native_for", lambda *_: lambda *_: pytest.fail("the C function was called"))
    found = decode_attention(q, k, v, cos, sin, one.layers[0], mask, 0.3)
    close(found, plain_decode_attention(q, k, v, cos, sin, other.layers[0], mask, 0.3))


@torch.no_grad()
def test_keys_that_other_code_has_replaced_are_read_right():
    (one, other), tensors = caches(2, 2, 50, 8), step()
    for _ in range(2):
        found = decode_attention(*tensors, one.layers[0], None, 0.3)
        close(found, plain_decode_attention(*tensors, other.layers[0], None, 0.3))
        assert torch.equal(one.layers[0].keys, other.layers[0].keys)
        one.layers[0].keys = one.layers[0].keys.clone()


@compiled
@torch.no_grad()
@pytest.mark.parametrize(("kind", "dtype"), list(zip(FITTING, cycle(DTYPES))))
def test_models_give_the_same_logits(kind: str, dtype: torch.dtype):
    model = tiny_model(kind).to(dtype).eval()
    model.config.dtype = dtype
    ids = torch.arange(40).view(2, 20) % 90
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padding, and a window of 8 tokens for some models

    def logits() -> torch.Tensor:
        cache = GrowingCache()
        found = [model(ids[:, :12], attention_mask=mask[:, :12], past_key_values=cache, use_cache=True).logits[:, -1]]
        for place in range(12, 20):
            given = {"attention_mask": mask[:, : place + 1], "past_key_values": cache, "use_cache": True}
            found.append(model(ids[:, place : place + 1], **given).logits[:, -1])
        return torch.stack(found)

    expected, undo = logits(), list[Undo]()
    state = torch.get_rng_state()
    use_decode_attention(model, undo)
    assert len(undo) == model.config.num_hidden_layers
    assert torch.equal(torch.get_rng_state(), state)
    with fast_generation(model):
        found = logits()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    undo_all(undo)
    assert torch.equal(logits(), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "cohere", "olmo2", "phi", "gptj"])
def test_layers_that_compute_something_else_stay_as_they_are(kind: str):
    undo: list[Undo] = []
    use_decode_attention(tiny_model(kind).eval(), undo)
    assert undo == []


@torch.no_grad()
@pytest.mark.parametrize("case", ["several threads", "no compiler", "a cache with a prefix"])
def test_otherwise_the_layers_class_computes(case: str, monkeypatch: pytest.MonkeyPatch):
    model, undo = tiny_model("llama").eval(), list[Undo]()
    use_decode_attention(model, undo)
    assert undo or native("decode_attention", "float32") is None
    monkeypatch.setattr(decoding, "decode_attention", lambda *_: pytest.fail("it was computed here"))
    if case == "no compiler":
        monkeypatch.setattr(decoding, "native_for", lambda *_: None)
    cache = GrowingCache()
    if case == "a cache with a prefix":
        cache.layers = DynamicCache(config=model.config).layers
    with threads(2 if case == "several threads" else 1):
        model(torch.arange(5)[None], past_key_values=cache, use_cache=True)
        model(torch.arange(1)[None], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 6
