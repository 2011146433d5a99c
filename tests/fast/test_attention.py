"""Block attention against the plain definition, and which masks it supports."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fast.conftest import UNITS
from tests.fast.definition import assert_no_less_exact, exactly
from tests.fast.definition import results as results_of
from tests.fast.kept import kept_bytes
from tests.runs import threads
from tests.tiny import in_pairs, relative_error, seeded
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
    "129": causal(129),
    "documents": packed(3, 130, 1, 66, 100),
    "documents end with blocks": packed(128, 128, 20),
    "window": window(300, 9),
    "window beyond a block": window(300, 200),
    "window in documents": packed(40, 150, 10) & window(200, 9),
    "another mask each row": torch.cat([causal(200), packed(90, 110), window(200, 7), packed(*[10] * 20)]),
    "after five keys": after_keys(causal(200), 5),
    "documents after seventy keys": torch.cat([after_keys(packed(40, 150, 10, 60), 70), after_keys(causal(260), 70)]),
    "some see what is before": after_keys(causal(100), 5) & (torch.arange(105) != torch.arange(100)[:, None] // 20),
    "padding before what is before": after_keys(causal(100), 5) & (torch.arange(105) > 1),
    "shared prompts": pairs((30, 5, 20), (60, 130, 140), (1, 1, 2)),
    "a hole": causal(100) & ((torch.arange(100) != 5) | (torch.arange(100) < 6)[:, None]),
}
ALL = torch.ones(1, 1, 100, 100, dtype=torch.bool)
OTHERS = {
    "all see all": ALL,
    "nothing is seen": ~ALL,
    "the future": causal(100).mT,
    "padding on the left": causal(100) & (torch.arange(100) >= 10),
    "padding on the right": causal(100) & (torch.arange(100) < 90),
    "a prefix that sees itself": causal(100) | ((torch.arange(100) < 7) & (torch.arange(100) < 7)[:, None]),
    "one row of another kind": torch.cat([causal(100), ALL]),
    "a mask a head": causal(100).repeat(1, 4, 1, 1),
}


def tensors(mask: Tensor, dtype: torch.dtype = torch.float64, key_heads: int = 2, batch: int = 2) -> list[Tensor]:
    """Return query (four heads), key and value (another width), stored as [batch, length, heads, width]."""
    batch, (length, keys) = max(batch, mask.shape[0]), mask.shape[-2:]
    generator = seeded(0)
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
    assert out.is_contiguous()  # models view it in other shapes
    return out.transpose(1, 2)


def results(forward: Any, given: list[Tensor], *rest: Any) -> list[Tensor]:
    """Return the output, and the gradients of query, key and value for a random gradient of the output."""
    shape = (*given[0].shape[:3], given[2].shape[3])
    grad = torch.randn(shape, generator=seeded(1)).to(given[0].dtype)
    return results_of(lambda *moved: forward(*moved, *rest), given, grad)


def assert_the_definitions(mask: Tensor, dtype: torch.dtype) -> None:
    given = tensors(mask, dtype)
    found, plain = results(attend, given, mask, 0.3), results(plain_attention, given, mask, 0.3)
    exact = results(plain_attention, exactly(given), mask, 0.3)
    assert_no_less_exact(*(dict(zip(NAMES, each, strict=True)) for each in (found, plain, exact)), FLOOR[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients_equal_the_definition(name: str, dtype: torch.dtype, blocks: list[torch.Size]):
    assert_the_definitions(MASKS[name], dtype)
    assert len(blocks) == 1


@pytest.mark.parametrize("unit", UNITS, indirect=True)
@pytest.mark.parametrize("name", MASKS)
def test_values_and_gradients_in_bfloat16_by_each_unit(name: str, unit: str, blocks: list[torch.Size]):
    assert_the_definitions(MASKS[name], torch.bfloat16)
    assert len(blocks) == 1


@pytest.mark.parametrize("unit", UNITS[:-1], indirect=True)
@pytest.mark.parametrize("heads", [(4, 4), (6, 3), (5, 1)])
@pytest.mark.parametrize("widths", [(80, 80), (64, 20), (5, 130)])
def test_a_c_function_has_the_error_of_the_definition_and_no_bit_depends_on_threads(
    heads: tuple[int, int], widths: tuple[int, int], unit: str
):
    torch.manual_seed(0)
    sizes = [(70, heads[0], widths[0]), (75, heads[1], widths[0]), (75, heads[1], widths[1])]
    given = [torch.randn(2, *size).bfloat16().transpose(1, 2).requires_grad_() for size in sizes]
    mask = torch.ones(70, 75, dtype=torch.bool).tril(5) & (torch.rand(2, 1, 70, 75) < 0.7)
    mask |= torch.ones(70, 75, dtype=torch.bool).tril(5).triu(5)

    def results(dtype: torch.dtype, count: int, function: Callable[..., Tensor]) -> list[Tensor]:
        moved = [tensor.detach().to(dtype).requires_grad_() for tensor in given]
        with threads(count):
            out = function(*moved)
            return [out.detach(), *torch.autograd.grad(out, moved, torch.ones_like(out) * out.detach())]

    def ours(*tensors: Tensor) -> Tensor:
        return attention.attention_forward(torch.nn.Module(), *tensors, mask, scaling=0.2)[0].transpose(1, 2)

    def definition(*tensors: Tensor) -> Tensor:
        return attention.plain_attention(*tensors, mask, 0.2)

    found, exact = results(torch.bfloat16, 1, ours), results(torch.float64, 1, definition)
    assert all(map(torch.equal, found, results(torch.bfloat16, 3, ours)))
    for ours_, plain, true in zip(found, results(torch.bfloat16, 1, definition), exact, strict=True):
        assert relative_error(ours_, true) <= 1.2 * relative_error(plain, true) + 1e-3


@pytest.mark.parametrize("there", [["attention_amx", "attention"], ["attention"], []])
def test_the_function_for_amx_is_chosen_where_there_is_one(there: list[str], monkeypatch: pytest.MonkeyPatch):
    used: list[str] = []
    monkeypatch.setattr(
        attention, "native_for", lambda kind, like: (lambda *given: used.append(kind)) if kind in there else None
    )
    with threads(1):
        attend(*tensors(causal(70), torch.bfloat16), causal(70))
    assert used == there[:1]


def test_more_queries_than_keys_are_not_for_a_c_function():
    query, key, value = tensors(causal(96))
    bits = torch.zeros(1, 96, 12, dtype=torch.uint8)
    assert attention._belong_together(query, key, value, bits)
    assert not attention._belong_together(query, key[:, :, :65], value[:, :, :65], bits)


@pytest.mark.parametrize("unit", UNITS[:-1], indirect=True)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_query_and_in_its_row(value: float, unit: str):
    mask = causal(100)
    given = [tensor.detach() for tensor in tensors(mask, torch.bfloat16)]
    finite = results(attend, [tensor.clone().requires_grad_() for tensor in given], mask)
    given[0][0, 1, 40, 3] = value
    found = results(attend, [tensor.requires_grad_() for tensor in given], mask)
    others = torch.arange(100) != 40
    for ours, expected in zip(found, finite, strict=True):
        assert torch.equal(ours[1], expected[1]), "the other row of the batch"
    for ours, expected in zip(found[:2], finite[:2], strict=True):
        assert ours[0, 1, 40].isnan().all()
        assert torch.equal(ours[0, 0], expected[0, 0])
        assert torch.equal(ours[0, 1, others], expected[0, 1, others])
    given = [tensor.detach() for tensor in given]
    given[0][0, 1, 40, 3] = 1
    given[1][0, 0, 40] = value
    out = attend(*given, mask)
    assert out[0, :2, :40].isfinite().all(), "those that do not see the key"
    assert out[0, :2, 40:].isnan().any(-1).any(-1).all()


@in_pairs(key_heads=[1, 2, 4], low=[None, -torch.inf, torch.finfo(torch.float64).min], scale=[None, 0.3])
def test_grouped_key_heads_and_additive_masks_equal_torch(
    key_heads: int, low: float | None, scale: float | None, blocks: list[torch.Size]
):
    mask = MASKS["another mask each row"]
    given = tensors(mask, key_heads=key_heads)
    found = results(attend, given, mask if low is None else added(mask, torch.float64, low), scale)
    assert len(blocks) == 1

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)

    expected, plain = results(torchs, given), results(plain_attention, given, mask, scale or 8**-0.5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(plain, expected)


@pytest.mark.parametrize("length", [1, 5, 64])
def test_short_rows_use_the_definition(length: int, blocks: list[torch.Size]):
    mask = causal(length)
    given = tensors(mask)
    ours, theirs = results(attend, given, mask), results(plain_attention, given, mask, 8**-0.5)
    assert all(map(torch.equal, ours, theirs))
    assert not blocks


@pytest.mark.parametrize("form", ["bool", "-inf"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_use_the_definition(name: str, form: str, blocks: list[torch.Size]):
    mask = OTHERS[name]
    assert causal_blocks(mask) is None
    given = tensors(mask)
    blind = ~mask.any(-1, keepdim=True)  # the output of a query that sees no key is undefined
    ours = attend(*given, mask if form == "bool" else added(mask, torch.float64))
    theirs = plain_attention(*given, mask, 8**-0.5)
    torch.testing.assert_close(ours.masked_fill(blind, 0), theirs.masked_fill(blind, 0))
    assert not blocks


def test_masks_without_blocks():
    distance = torch.arange(100) - torch.arange(100)[:, None]
    shifted = torch.where(distance > 0, -torch.inf, distance.float())  # as ALiBi: 0 on the diagonal alone
    for mask in (None, causal(4)[0], causal(4)[:, :, :3], shifted[None, None]):
        assert causal_blocks(mask) is None


def test_without_a_mask_every_key_is_seen_and_a_batch_may_be_empty(blocks: list[torch.Size]):
    given = tensors(causal(100))
    torch.testing.assert_close(attend(*given, None), F.scaled_dot_product_attention(*given, enable_gqa=True))
    assert not blocks
    given = [tensor[:0].detach().requires_grad_() for tensor in given]
    assert [tensor.shape[0] for tensor in results(attend, given, causal(100))] == [0] * 4


@pytest.mark.parametrize("new", [70, 3])
def test_keys_from_a_cache_are_added_to_each_block(new: int, blocks: list[torch.Size]):
    mask = causal(100)
    query, key, value = tensors(mask)
    torch.testing.assert_close(
        attend(query[:, :, -new:], key, value, mask[:, :, -new:]), attend(query, key, value, mask)[:, :, -new:]
    )
    assert [size[2] for size in blocks] == ([70, 100] if new == 70 else [100]), "a few go by the definition"


def test_a_softcap_and_dropout_use_the_definition(blocks: list[torch.Size]):
    mask = causal(100)
    query, key, value = given = tensors(mask)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    probabilities = (0.5 * torch.tanh(scores / 0.5)).masked_fill(~mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(attend(*given, mask, softcap=0.5), probabilities @ value.repeat_interleave(2, 1))
    torch.manual_seed(0)
    dropped = attend(*given, mask, dropout=0.5)
    torch.manual_seed(0)
    assert torch.equal(dropped, plain_attention(*given, mask, 8**-0.5, None, 0.5))
    assert not blocks
    assert not torch.allclose(dropped, attend(*given, mask, dropout=0.0))


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


def test_probabilities_of_visible_keys_alone_are_kept_and_of_long_rows_none():
    def kept(mask: Tensor) -> float:
        """How many numbers are kept beside query, key and value."""
        given = tensors(mask, batch=1)
        return kept_bytes(lambda: attend(*given, mask)) / 8 - sum(tensor.numel() for tensor in given)

    # Each of four blocks of 128 queries sees the keys up to its end, those of its own two documents, those in the
    # window, or those of its own answer and of the prompt of 128.
    assert kept(causal(512)) == 4 * 128 * (128 + 256 + 384 + 512)
    assert kept(packed(*[64] * 8)) == 4 * 128 * (4 * 128)
    assert kept(window(512, 129)) == 4 * 128 * (128 + 256 + 256 + 256)
    assert kept(pairs((128, 128, 256))) == 4 * 128 * (128 + 256 + 256 + 384)
    assert kept(causal(3072)) == 0
    assert kept(packed(*[256] * 12)) > 0, "the documents are short"


@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("name", ["another mask each row", "documents after seventy keys"])
def test_probabilities_that_are_not_kept_are_the_same(name: str, key_heads: int, monkeypatch: pytest.MonkeyPatch):
    given = tensors(MASKS[name], key_heads=key_heads)
    kept = results(attend, given, MASKS[name])
    monkeypatch.setattr(attention, "_KEPT_KEYS", 0)
    assert all(map(torch.equal, kept, results(attend, given, MASKS[name])))
    with torch.inference_mode():
        torch.testing.assert_close(attend(*given, MASKS[name]), kept[0])
