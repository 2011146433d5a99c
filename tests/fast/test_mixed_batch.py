"""A batch with an adapter for each row, compared with each row alone and with PEFT's mixed batch."""

from itertools import product
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.errors import refused
from tests.tiny import ids, in_pairs, logits, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    mixed_batch,
    save_adapter,
    set_adapter,
    use_fast_paths,
)
from tsugiki.fast import RowPairs, plain_rows, row_products, rows_product
from tsugiki.lora import LowRank, add_magnitude, init_pissa_, new_pair, wrap
from tsugiki.lowbit import Int8Linear, quantize
from tsugiki.model import oriented

NAMES = ["a", None, "c", "b", "__base__", "c"]


def with_adapters(kind: str = "gpt2", targets: object = None, base=None, **settings):
    """A model with LoRA adapters a, b and c of ranks 2, 3 and 4, `c` active."""
    model = tiny_model(kind) if base is None else base
    for seed, name in enumerate("abc"):
        graft(model, LoraConfig(r=2 + seed, lora_alpha=8, target_modules=targets, **settings), name)
        shake(model, seed)
    return model


def each_alone(model, names, compute):
    """Return `compute(row)` for each row with its adapter; the model is left as it was."""
    active = model._tsugiki.active
    found = []
    for row, name in enumerate(names):
        if name in (None, "__base__"):
            with disable_adapter(model):
                found.append(compute(row))
        else:
            set_adapter(model, name)
            found.append(compute(row))
    set_adapter(model, active)
    return found


def assert_as_each_alone(model, names, compute, tolerance=1e-5):
    """`compute(rows)` gives for all rows in a mixed batch what it gives for each row with its adapter; return that."""
    alone = torch.cat(each_alone(model, names, lambda row: compute(slice(row, row + 1))))
    with mixed_batch(model, names):
        mixed = compute(slice(None))
    torch.testing.assert_close(mixed, alone, rtol=tolerance, atol=tolerance)
    return mixed


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "gpt_neox", "phi3"])
def test_each_row_equals_the_row_alone_and_base_rows_are_bit_identical(kind: str):
    model, tokens = tiny_model(kind), ids(len(NAMES))
    base = logits(model, tokens)
    with_adapters(base=model)
    active = logits(model, tokens)
    mixed = assert_as_each_alone(model, NAMES, lambda rows: logits(model, tokens[rows]))
    of_base = torch.tensor([name in (None, "__base__") for name in NAMES])
    assert torch.equal(mixed[of_base], base[of_base])
    changed = (mixed - base).abs().amax((1, 2)) > 1e-2
    assert torch.equal(changed, ~of_base)
    assert torch.equal(logits(model, tokens), active), "c is active again"


@pytest.mark.parametrize(
    "settings",
    [{"targets": ["embed_tokens", "q_proj"]}, {"targets": ["lm_head", "embed_tokens"]}, {"use_dora": True}],
    ids=["embedding", "head", "dora"],
)
def test_embeddings_heads_and_dora_in_a_mixed_batch(settings: dict):
    model, tokens = with_adapters("gemma3_text", **settings), ids(len(NAMES))
    assert_as_each_alone(model, NAMES, lambda rows: logits(model, tokens[rows]), 1e-4)


GREEDY = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "pad_token_id": 0}


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_equals_each_row_alone(search: dict):
    model, prompts = with_adapters("llama"), ids(len(NAMES), 5)
    mixed = assert_as_each_alone(model, NAMES, lambda rows: model.generate(prompts[rows], **GREEDY, **search), 0)
    with disable_adapter(model):
        base = model.generate(prompts, **GREEDY, **search)
    assert not torch.equal(base, mixed), "the adapters change the output"


def test_forward_and_generate_equal_pefts_mixed_batch(tmp_path):
    ours, names, tokens = with_adapters("llama"), ["b", "__base__", "c", "a"], ids(4)
    for name in "abc":
        save_adapter(ours, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "a"), adapter_name="a").eval()
    for name in "bc":
        theirs.load_adapter(str(tmp_path / name), name)
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, adapter_names=names).logits
        expected = theirs.generate(input_ids=tokens, adapter_names=names, num_beams=2, **GREEDY)
    with mixed_batch(ours, names):
        torch.testing.assert_close(logits(ours, tokens), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.generate(tokens, num_beams=2, **GREEDY), expected)
    calls = ({}, {"num_beams": 2, **GREEDY})
    for names, call in product(
        (["b"], ["b", "a"], ["b", "a", "c"], ["a", "b", "c", "a", "b"], ["__base__"] * 2), calls
    ):
        with pytest.raises(ValueError, match="Length of `adapter_names`"):
            (theirs.generate if call else theirs)(input_ids=tokens, adapter_names=names, **call)
        with mixed_batch(ours, names), refused(rf"4 rows, but {len(names)} adapter names"):
            (ours.generate if call else ours)(input_ids=tokens, **call)


def _pairs(layer: nn.Module, kinds: str) -> list[LowRank | None]:
    """Pairs of ranks 1, 2, 3 …, by letters: `-` no pair, `l` LoRA, `d` DoRA, `p` PiSSA."""
    pairs: list[LowRank | None] = []
    for at, kind in enumerate(kinds):
        torch.manual_seed(at)
        pair = new_pair(layer, at % 4 + 1, 0.5 + at, 0.3, False)
        if kind == "d":
            add_magnitude(pair, oriented(layer))
        if kind == "p":
            init_pissa_(pair, oriented(layer), "pissa")
        for parameter in pair.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        pairs.append(None if kind == "-" else pair)
    return pairs


LAYERS = {
    "linear": lambda: nn.Linear(12, 10),
    "no bias": lambda: nn.Linear(12, 10, bias=False),
    "conv1d": lambda: Conv1D(10, 12),
    "int8": lambda: Int8Linear.from_layer(nn.Linear(12, 10), torch.float32),
}


@in_pairs(
    dtype=[torch.float32, torch.float64, torch.bfloat16],
    shape=[(6, 1, 12), (6, 20, 12), (6, 12), (12, 3, 12), (6, 2, 3, 12)],
    kinds=["l", "lll", "l-ldl-", "--l", "dpd", "-p"],
    make=LAYERS.values(),
)
def test_the_products_of_rows_equal_the_definition(
    make, kinds: str, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    layer = wrap(make().requires_grad_(False).to(dtype)).eval()
    pairs = _pairs(layer.base_layer, kinds)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        y = layer.base_layer(x)
        wanted = plain_rows(layer, pairs, x, y)
        compiled = rows_product(layer, RowPairs(pairs), x, y.clone())
        monkeypatch.setattr(row_products, "native_for", lambda kind, tensor: None)
        stacked = rows_product(layer, RowPairs(pairs), x, y.clone())
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 4e-2}[dtype]
    for found in (compiled, stacked):
        assert found.dtype == wanted.dtype == dtype
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        for pair, mine, of_base in zip(pairs, found.chunk(len(pairs)), y.chunk(len(pairs)), strict=True):
            assert torch.equal(mine, of_base) == (pair is None)


def test_the_definition_equals_the_formula():
    layer = wrap(nn.Linear(12, 10).double()).eval()
    pairs = _pairs(layer.base_layer, "l-l")
    x = torch.randn(3, 4, 12, dtype=torch.float64)
    found = plain_rows(layer, pairs, x, layer.base_layer(x))
    for row, pair in enumerate(pairs):
        weight = layer.base_layer.weight
        whole = weight if pair is None else weight + pair.scaling * pair.B @ pair.A
        torch.testing.assert_close(found[row], x[row] @ whole.T + layer.base_layer.bias)


def test_convolutions_in_a_mixed_batch():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    for seed, name in enumerate("ab"):
        graft(model, LoraConfig(r=2 + 2 * seed, target_modules=["0", "2"]), name)
        shake(model, seed)
    x = torch.randn(3, 4, 5, 5)
    assert_as_each_alone(model, ["b", None, "a"], lambda rows: model(x[rows]).detach())


def test_a_hooked_layer_computes_the_same_and_keeps_what_the_hook_holds():
    model, tokens, seen = with_adapters(), ids(len(NAMES)), []
    with mixed_batch(model, NAMES):
        stacked = logits(model, tokens)
    layer = model.transformer.h[0].attn.c_attn
    layer.base_layer.register_forward_hook(lambda module, given, y: seen.append(y))
    with mixed_batch(model, NAMES):
        torch.testing.assert_close(logits(model, tokens), stacked, rtol=1e-5, atol=1e-5)
    with disable_adapter(model):
        logits(model, tokens)
    assert torch.equal(seen[0], seen[-1]), "it is not written over"


def test_under_autocast_it_equals_each_row_alone():
    model, tokens = with_adapters("llama"), ids(len(NAMES))
    compute = torch.autocast("cpu", torch.bfloat16)(lambda rows: logits(model, tokens[rows]))
    assert_as_each_alone(model, NAMES, compute, 3e-2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_with_the_fast_paths_and_int8(kind: str):
    places = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 128}
    model = with_adapters(kind, base=quantize(tiny_model(kind, **places), torch.float32))
    names, tokens = ["b", None, "a", "a"], ids(4, 80)  # long enough for attention in blocks
    plain = assert_as_each_alone(model, names, lambda rows: logits(model, tokens[rows]), 1e-2)
    use_fast_paths(model)
    # Where the last bit differs, a value may be rounded to the next int8 value.
    assert_as_each_alone(model, names, lambda rows: logits(model, tokens[rows]), 1e-2)
    with mixed_batch(model, names):
        loss = model(input_ids=tokens, labels=tokens).loss
    wanted = nn.functional.cross_entropy(plain[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-3)


def test_adapters_with_different_layers_and_settings_share_a_batch():
    model, tokens = tiny_model("llama").bfloat16(), ids(5)
    settings: dict[str, dict[str, Any]] = {
        "few": {"r": 2, "target_modules": ["q_proj"]},
        "dora": {"r": 3, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
        "pissa": {"r": 2, "target_modules": ["v_proj", "down_proj"], "init_lora_weights": "pissa"},
        "rs": {"r": 8, "target_modules": ["down_proj"], "use_rslora": True, "lora_dropout": 0.5},
    }
    for name, fields in settings.items():
        shake(graft(model, LoraConfig(**fields), name))
    names = ["rs", "dora", None, "few", "pissa"]
    mixed = assert_as_each_alone(model, names, lambda rows: logits(model, tokens[rows]), 3e-2)
    assert mixed.dtype == torch.bfloat16
