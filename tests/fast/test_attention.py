"""Block attention against the plain definition, and which masks it supports."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiny import relative_error
from tsugiki.fast import attention, attention_forward, causal_blocks, plain_attention

# The error against float64 may be twice that of the plain path plus this: the two round scores in different places.
FLOOR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}
NAMES = ("out", "query", "key", "value")


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


def window(length: int, size: int) -> Tensor:
    return causal(length) & torch.ones(length, length, dtype=torch.bool).triu(1 - size)


def packed(*lengths: int) -> Tensor:
    return torch.block_diag(*[torch.ones(n, n) for n in lengths]).bool()[None, None] & causal(sum(lengths))


def pairs(*lengths: tuple[int, int, int]) -> Tensor:
    """Rows of prompt, chosen and rejected answer; the rejected one sees the prompt, but not the chosen one."""
    mask = packed(*map(sum, lengths)).clone()
    start = 0
    for prompt, chosen, rejected in lengths:
        mask[
            ..., start + prompt + chosen : start + prompt + chosen + rejected, start + prompt : start + prompt + chosen
        ] = False
        start += prompt + chosen + rejected
    return mask


def after_keys(mask: Tensor, keys: int) -> Tensor:
    """Return the mask with `keys` more keys before the others, which every query sees."""
    return F.pad(mask, (keys, 0), value=True)


def added(mask: Tensor, dtype: torch.dtype = torch.float32, lowest: float = -torch.inf) -> Tensor:
    """Return the mask as an additive mask."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, lowest)


MASKS = {
    "65": causal(65),
    "127": causal(127),
    "128": causal(128),
    "129": causal(129),
    "two blocks": causal(256),
    "documents": packed(3, 130, 1, 66, 100),
    "documents end with blocks": packed(128, 128, 20),
    "window": window(300, 9),
    "window beyond a block": window(300, 200),
    "window in documents": packed(40, 150, 10) & window(200, 9),
    "another mask each row": torch.cat([causal(200), packed(90, 110), window(200, 7), packed(*[10] * 20)]),
}
MASKS |= {
    "after five keys": after_keys(causal(200), 5),
    "documents after seventy keys": torch.cat([after_keys(packed(40, 150, 10, 60), 70), after_keys(causal(260), 70)]),
    "some see what is before": after_keys(causal(100), 5) & (torch.arange(105) != torch.arange(100)[:, None] // 20),
    "padding before what is before": after_keys(causal(100), 5) & (torch.arange(105) > 1),
    "shared prompts": pairs((30, 5, 20), (60, 130, 140), (1, 1, 2)),
    "shared prompts in a window": pairs((50, 60, 70), (9, 40, 30)) & window(259, 90),
    "a hole": causal(100) & ((torch.arange(100) != 5) | (torch.arange(100) < 6)[:, None]),
}
OTHERS = {
    "all see all": torch.ones(1, 1, 100, 100, dtype=torch.bool),
    "padding on the left": causal(100) & (torch.arange(100) >= 10),
    "padding on the right": causal(100) & (torch.arange(100) < 90),
    "a prefix that sees itself": causal(100) | ((torch.arange(100) < 7) & (torch.arange(100) < 7)[:, None]),
    "one row of another kind": torch.cat([causal(100), torch.ones(1, 1, 100, 100, dtype=torch.bool)]),
    "a mask a head": causal(100).repeat(1, 4, 1, 1),
}


def tensors(mask: Tensor, dtype: torch.dtype = torch.float64, key_heads: int = 2, batch: int = 2) -> list[Tensor]:
    """Return query (four heads), key and value (another width), stored as [batch, length, heads, width]."""
    batch, (length, keys) = max(batch, mask.shape[0]), mask.shape[-2:]
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, length, 4, 8), (batch, keys, key_heads, 8), (batch, keys, key_heads, 6))
    return [
        (1.5 * torch.randn(shape, generator=generator)).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes
    ]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None, **rest: Any
) -> Tensor:
    """Return the output of `attention_forward` as [batch, heads, length, width]."""
    out, probabilities = attention_forward(nn.Module(), query, key, value, mask, scaling=scale, **rest)
    assert probabilities is None
    return out.transpose(1, 2)


def results(forward: Any, given: list[Tensor], *rest: Any) -> list[Tensor]:
    """Return the output, and the gradients of query, key and value for a random gradient of the output."""
    out = forward(*given, *rest)
    for tensor in given:
        tensor.grad = None
        tensor.retain_grad()
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    return [out.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


def equals_the_definition(mask: Tensor, dtype: torch.dtype) -> None:
    given = tensors(mask, dtype)
    found, plain = results(attend, given, mask, 0.3), results(plain_attention, given, mask, 0.3)
    exact = results(plain_attention, [t.detach().double().requires_grad_() for t in given], mask, 0.3)
    for what, ours, theirs, true in zip(NAMES, found, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert relative_error(ours, true) <= FLOOR[dtype] + 2 * relative_error(theirs, true), what


@pytest.mark.parametrize("dtype", FLOOR)
@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients_equal_the_definition(name: str, dtype: torch.dtype, blocks: list[torch.Size]):
    equals_the_definition(MASKS[name], dtype)
    assert len(blocks) == 1


@pytest.mark.parametrize("name", ["129", "another mask each row", "documents after seventy keys"])
def test_bfloat16_without_the_c_function(name: str, blocks: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "native_for", lambda *_: None)
    equals_the_definition(MASKS[name], torch.bfloat16)
    assert len(blocks) == 1


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("form", ["bool", "-inf", "lowest"])
def test_grouped_key_heads_and_additive_masks(key_heads: int, form: str, blocks: list[torch.Size]):
    mask = MASKS["another mask each row"]
    given = tensors(mask, key_heads=key_heads)
    low = {"-inf": -torch.inf, "lowest": torch.finfo(torch.float64).min}
    given_mask = mask if form == "bool" else added(mask, torch.float64, low[form])
    for name, ours, theirs in zip(
        NAMES, results(attend, given, given_mask), results(plain_attention, given, mask, 8**-0.5), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert len(blocks) == 1


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_definition_equals_torchs(scale: float | None):
    mask = MASKS["another mask each row"]
    given = tensors(mask)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)

    definition = results(plain_attention, given, mask, 8**-0.5 if scale is None else scale)
    for name, ours, wanted in zip(NAMES, definition, results(theirs, given), strict=True):
        torch.testing.assert_close(ours, wanted, msg=name)


def test_a_document_does_not_see_the_one_before(blocks: list[torch.Size]):
    mask = packed(70, 90, 140)
    query, key, value = tensors(mask)
    whole = attend(query, key, value, mask)
    torch.testing.assert_close(
        whole[:, :, 70:160], attend(*(t[:, :, 70:160] for t in (query, key, value)), causal(90)), rtol=1e-12, atol=1e-12
    )
    noise = torch.zeros_like(key)
    noise[:, :, :70] = torch.randn(70, 8, dtype=torch.float64) * 100
    assert torch.equal(attend(query, key + noise, value, mask)[:, :, 70:], whole[:, :, 70:])
    assert len(blocks) == 3


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_gradcheck(key_heads: int, past: int, blocks: list[torch.Size], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_BLOCK", 3)
    monkeypatch.setattr(attention, "_SHORT", 0)
    mask = after_keys(torch.cat([packed(2, 5), window(7, 3)]), past)
    moved = tensors(mask, key_heads=key_heads)
    assert torch.autograd.gradcheck(lambda *given: attend(*given, mask, 0.3), moved, fast_mode=True)
    assert blocks


@pytest.mark.parametrize("length", [1, 5, 64])
def test_short_rows_use_the_definition(length: int, blocks: list[torch.Size]):
    mask = causal(length)
    given = tensors(mask)
    for ours, theirs in zip(results(attend, given, mask), results(plain_attention, given, mask, 8**-0.5), strict=True):
        assert torch.equal(ours, theirs)
    assert not blocks


@pytest.mark.parametrize("form", ["bool", "-inf"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_use_the_definition(name: str, form: str, blocks: list[torch.Size]):
    mask = OTHERS[name]
    assert causal_blocks(mask) is None
    given = tensors(mask)
    given_mask = mask if form == "bool" else added(mask, torch.float64)
    blind = ~mask.any(-1, keepdim=True)  # the output of a query that sees no key is undefined
    ours, theirs = attend(*given, given_mask), plain_attention(*given, mask, 8**-0.5)
    torch.testing.assert_close(ours.masked_fill(blind, 0), theirs.masked_fill(blind, 0))
    assert not blocks


def test_without_a_mask_every_key_is_seen(blocks: list[torch.Size]):
    given = tensors(causal(100))
    torch.testing.assert_close(attend(*given, None), F.scaled_dot_product_attention(*given, enable_gqa=True))
    assert not blocks


@pytest.mark.parametrize("new", [70, 3])
def test_keys_from_a_cache_are_added_to_each_block(new: int, blocks: list[torch.Size]):
    mask = causal(100)
    query, key, value = tensors(mask)
    torch.testing.assert_close(
        attend(query[:, :, -new:], key, value, mask[:, :, -new:]), attend(query, key, value, mask)[:, :, -new:]
    )
    assert [size[2] for size in blocks] == ([70, 100] if new == 70 else [100]), "a few go by the definition"


def test_a_softcap_uses_the_definition(blocks: list[torch.Size]):
    mask = causal(100)
    given = tensors(mask)
    capped = attend(*given, mask, softcap=0.5)
    scores = given[0] @ given[1].repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    probabilities = (0.5 * torch.tanh(scores / 0.5)).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(capped, probabilities @ given[2].repeat_interleave(2, 1))
    assert not torch.allclose(capped, attend(*given, mask))
    assert len(blocks) == 1, "the one without"


def test_dropout_uses_the_definition(blocks: list[torch.Size]):
    mask = causal(100)
    given = tensors(mask)
    torch.manual_seed(0)
    dropped = attend(*given, mask, dropout=0.5)
    assert not torch.allclose(dropped, attend(*given, mask, dropout=0.0))
    torch.manual_seed(0)
    assert torch.equal(dropped, plain_attention(*given, mask, 8**-0.5, None, 0.5))
    assert len(blocks) == 1


@pytest.mark.parametrize("form", ["bool", "-inf", "lowest"])
def test_blocks_of_masks(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_BLOCK", 2)

    def blocks(mask: Tensor) -> list[tuple[list[int], int]]:
        """The keys that each block sees, and how many of them all queries see."""
        low = {"-inf": -torch.inf, "lowest": torch.finfo(torch.float32).min}
        found = causal_blocks(mask if form == "bool" else added(mask, torch.float32, low[form]))
        assert found is not None
        for block in found:
            keys = [key for run in block.keys for key in range(run.start, run.stop)]
            assert torch.equal(~block.hidden, mask[:, 0, block.queries][..., keys[block.seen_by_all :]])
            assert mask[:, 0, block.queries][..., keys[: block.seen_by_all]].all()
            assert not mask[:, 0, block.queries][..., [key for key in range(mask.shape[3]) if key not in keys]].any()
        return [
            ([key for run in block.keys for key in range(run.start, run.stop)], block.seen_by_all) for block in found
        ]

    assert blocks(causal(4)) == [([0, 1], 1), ([0, 1, 2, 3], 3)]
    assert blocks(packed(2, 1, 3)) == [([0, 1], 1), ([2, 3], 0), ([3, 4, 5], 2)]
    assert blocks(window(5, 3)) == [([0, 1], 1), ([0, 1, 2, 3], 0), ([2, 3, 4], 0)]
    assert blocks(pairs((1, 3, 2))) == [([0, 1], 1), ([0, 1, 2, 3], 3), ([0, 4, 5], 2)]
    assert blocks(after_keys(packed(2, 2), 3)) == [([0, 1, 2, 3, 4], 4), ([0, 1, 2, 5, 6], 4)]
    assert blocks(torch.cat([causal(4), packed(2, 2)])) == [([0, 1], 1), ([0, 1, 2, 3], 0)]


@pytest.mark.parametrize(
    "mask",
    [
        None,
        causal(4)[0],
        causal(4)[:, :, :3],
        causal(4).repeat(1, 2, 1, 1),
        ~causal(4),
        causal(4) & (torch.arange(4) > 0),
        torch.zeros(1, 1, 4, 4, dtype=torch.bool),
        torch.ones(1, 1, 4, 4, dtype=torch.bool),
        causal(4).transpose(2, 3),
    ],
    ids=["none", "3-d", "not square", "heads", "the rest", "left padding", "nothing", "all", "the future"],
)
def test_masks_without_blocks(mask: Tensor | None):
    assert causal_blocks(mask) is None


def test_a_mask_that_is_written_over_is_looked_at_again():
    mask = causal(200).clone()
    given = tensors(mask)
    first = attend(*given, mask)
    mask.copy_(packed(90, 110))
    second = attend(*given, mask)
    torch.testing.assert_close(second, plain_attention(*given, mask, 8**-0.5))
    assert relative_error(first, second) > 0.01
    mask.data.copy_(causal(200))  # which torch does not count as a change
    torch.testing.assert_close(attend(*given, mask), first)
    with torch.inference_mode():
        mask = causal(200).clone()
        torch.testing.assert_close(attend(*given, mask), first)
        mask.copy_(packed(90, 110))
        torch.testing.assert_close(attend(*given, mask), second)


def test_only_probabilities_of_visible_keys_are_kept():
    length, kept = 512, []
    given = tensors(causal(length), batch=1)
    for mask in (causal(length), packed(*[64] * 8), pairs((128, 128, 256))):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            attend(*given, mask)
        kept.append(sum(sizes) - sum(t.numel() for t in given))
    # Each of four blocks of 128 queries sees the keys up to its end, those of its own two documents, or those of its
    # own answer and of the prompt of 128.
    assert kept == [4 * 128 * (128 + 256 + 384 + 512), 4 * 128 * (4 * 128), 4 * 128 * (128 + 256 + 256 + 384)]


def test_without_gradients():
    mask = causal(100)
    with torch.inference_mode():
        given = tensors(mask)
        torch.testing.assert_close(attend(*given, mask), plain_attention(*given, mask, 8**-0.5))


def test_masks_that_shift_scores_use_the_definition():
    distance = torch.arange(100) - torch.arange(100)[:, None]
    shifted = torch.where(distance > 0, -torch.inf, distance.float())  # as ALiBi: 0 on the diagonal alone
    assert causal_blocks(shifted[None, None]) is None


def test_an_empty_batch():
    given = [torch.empty(0, 2, 100, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(100, 100, dtype=torch.bool).tril()[None, None]
    out = attention.attention_forward(nn.Module(), *given, mask)[0]
    assert out.shape == (0, 100, 2, 8)
    out.sum().backward()
    assert given[0].grad.shape == (0, 2, 100, 8)


def test_long_rows_keep_memory_in_proportion_to_their_length():
    def kept(mask: Tensor) -> int:
        given = tensors(mask, torch.float32, batch=1)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            attend(*given, mask)
        return sum(sizes)

    assert kept(causal(3072)) == 2 * kept(causal(1536))
    assert kept(packed(*[256] * 12)) > kept(causal(3072))  # the documents are short


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("name", ["two blocks", "another mask each row", "documents after seventy keys"])
def test_probabilities_that_are_not_kept_are_the_same(name: str, key_heads: int, monkeypatch: pytest.MonkeyPatch):
    given = tensors(MASKS[name], key_heads=key_heads)
    kept = results(attend, given, MASKS[name])
    monkeypatch.setattr(attention, "_KEPT_KEYS", 0)
    assert all(torch.equal(a, b) for a, b in zip(kept, results(attend, given, MASKS[name]), strict=True))
