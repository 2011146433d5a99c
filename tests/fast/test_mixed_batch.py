"""A batch with an adapter for each row, compared with each row alone and with PEFT's mixed batch."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny import ids, in_pairs, logits, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch, save_adapter, set_adapter, use_fast_paths
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


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "gpt_neox", "phi3"])
def test_each_row_equals_the_row_alone_and_base_rows_are_bit_identical(kind: str):
    model = tiny_model(kind)
    tokens = ids(len(NAMES))
    base = logits(model, tokens)
    with_adapters(base=model)
    alone = torch.cat(each_alone(model, NAMES, lambda row: logits(model, tokens[row : row + 1])))
    with mixed_batch(model, NAMES):
        mixed = logits(model, tokens)
    torch.testing.assert_close(mixed, alone, rtol=1e-5, atol=1e-5)
    of_base = torch.tensor([name in (None, "__base__") for name in NAMES])
    assert torch.equal(mixed[of_base], base[of_base])
    changed = (mixed - base).abs().amax((1, 2)) > 1e-2
    assert torch.equal(changed, ~of_base)
    assert not torch.allclose(mixed[2], mixed[5]), "rows are different texts"
    assert torch.equal(logits(model, tokens[5:])[0], alone[5]), "c is active again"


@pytest.mark.parametrize(
    "settings",
    [{"targets": ["embed_tokens", "q_proj"]}, {"targets": ["lm_head", "embed_tokens"]}, {"use_dora": True}],
    ids=["embedding", "head", "dora"],
)
def test_embeddings_heads_and_dora_in_a_mixed_batch(settings: dict):
    model = with_adapters("gemma3_text", **settings)
    tokens = ids(len(NAMES))
    alone = torch.cat(each_alone(model, NAMES, lambda row: logits(model, tokens[row : row + 1])))
    with mixed_batch(model, NAMES):
        torch.testing.assert_close(logits(model, tokens), alone, rtol=1e-4, atol=1e-5)


def test_adapters_with_different_layers_and_settings_share_a_batch():
    model = tiny_model("llama").bfloat16()
    for name, config in {
        "few": LoraConfig(r=2, target_modules=["q_proj"]),
        "dora": LoraConfig(r=3, target_modules=["q_proj", "v_proj"], use_dora=True),
        "pissa": LoraConfig(r=2, target_modules=["v_proj", "down_proj"], init_lora_weights="pissa"),
        "rs": LoraConfig(r=8, target_modules=["down_proj"], use_rslora=True, lora_dropout=0.5),
    }.items():
        graft(model, config, name)
        shake(model)
    names = ["rs", "dora", None, "few", "pissa"]
    tokens = ids(5)
    alone = torch.cat(each_alone(model, names, lambda row: logits(model, tokens[row : row + 1])))
    with mixed_batch(model, names):
        mixed = logits(model, tokens)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, alone, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_equals_each_row_alone(search: dict):
    model = with_adapters("llama")
    prompts = ids(len(NAMES), 5)
    given = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0, **search}
    alone = each_alone(model, NAMES, lambda row: model.generate(prompts[row : row + 1], **given))
    with mixed_batch(model, NAMES):
        mixed = model.generate(prompts, **given)
    assert torch.equal(mixed, torch.cat(alone))
    with disable_adapter(model):
        base = model.generate(prompts, **given)
    assert not torch.equal(base, mixed), "the adapters change the output"


def test_padded_prompts_generate_as_each_alone():
    model = with_adapters("llama")
    tokens = ids(3, 8)
    lengths = [8, 5, 3]
    mask = torch.tensor([[0] * (8 - n) + [1] * n for n in lengths])
    given = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
    alone = each_alone(
        model, ["a", None, "b"], lambda row: model.generate(tokens[row : row + 1, 8 - lengths[row] :], **given)[:, -8:]
    )
    with mixed_batch(model, ["a", None, "b"]):
        mixed = model.generate(tokens * mask, attention_mask=mask, **given)[:, -8:]
    assert torch.equal(mixed, torch.cat(alone))


def test_forward_and_generate_equal_pefts_mixed_batch(tmp_path):
    peft = pytest.importorskip("peft")
    ours = with_adapters("llama")
    for name in "abc":
        save_adapter(ours, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "a"), adapter_name="a")
    for name in "bc":
        theirs.load_adapter(str(tmp_path / name), name)
    theirs.eval()
    names = ["b", "__base__", "c", "a"]
    tokens = ids(4)
    given = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "num_beams": 2}
    with torch.no_grad():
        wanted = theirs(input_ids=tokens, adapter_names=names).logits
        expected = theirs.generate(input_ids=tokens, adapter_names=names, **given)
    with mixed_batch(ours, names):
        torch.testing.assert_close(logits(ours, tokens), wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.generate(tokens, **given), expected)


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
    alone = torch.cat(each_alone(model, ["b", None, "a"], lambda row: model(x[row : row + 1]).detach()))
    with mixed_batch(model, ["b", None, "a"]):
        torch.testing.assert_close(model(x), alone)


def test_a_hooked_or_unfused_layer_computes_the_same():
    model = with_adapters()
    tokens = ids(len(NAMES))
    with mixed_batch(model, NAMES):
        stacked = logits(model, tokens)
    seen = []
    layer = model.transformer.h[0].attn.c_attn
    handle = layer.base_layer.register_forward_hook(lambda module, given, y: seen.append(y))
    with mixed_batch(model, NAMES):
        torch.testing.assert_close(logits(model, tokens), stacked, rtol=1e-5, atol=1e-5)
    kept = seen[0].clone()
    handle.remove()
    with disable_adapter(model):
        layer.base_layer.register_forward_hook(lambda module, given, y: seen.append(y))
        logits(model, tokens)
    assert torch.equal(kept, seen[-1]), "what a hook holds is not written over"


def test_under_autocast_it_equals_each_row_alone():
    model = with_adapters("llama")
    tokens = ids(len(NAMES))

    def compute(given):
        with torch.autocast("cpu", torch.bfloat16):
            return logits(model, given)

    alone = torch.cat(each_alone(model, NAMES, lambda row: compute(tokens[row : row + 1])))
    with mixed_batch(model, NAMES):
        torch.testing.assert_close(compute(tokens), alone, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_with_the_fast_paths_and_int8(kind: str):
    places = {"n_positions" if kind == "gpt2" else "max_position_embeddings": 128}
    model = with_adapters(kind, base=quantize(tiny_model(kind, **places), torch.float32))
    names = ["b", None, "a", "a"]
    tokens = ids(4, 80)  # long enough for attention in blocks
    alone = torch.cat(each_alone(model, names, lambda row: logits(model, tokens[row : row + 1])))
    use_fast_paths(model)
    with mixed_batch(model, names):
        mixed = logits(model, tokens)
        loss = model(input_ids=tokens, labels=tokens).loss
    # Where the last bit differs, a value may be rounded to the next int8 value.
    torch.testing.assert_close(mixed, alone, rtol=1e-2, atol=1e-2)
    wanted = nn.functional.cross_entropy(alone[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=1e-3)
