"""Where (IA)³ and bottleneck adapters are put: in known model types as the tables had it, in others by structure."""

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.tiny import CONFIGS, relative_error, shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import active_adapter, graft, save_adapter
from tsugiki.lora.weightless import _inputs
from tsugiki.methods import BottleneckConfig, IA3Config, places_of

_GPT2 = (["attn.c_attn"], ["mlp.c_proj"], ["attn"], ["mlp"])
_LLAMA = (["self_attn.k_proj", "self_attn.v_proj"], ["mlp.down_proj"], ["self_attn"], ["mlp"])
_SEPARATE = ["self_attn.k_proj", "self_attn.v_proj"]
KNOWN = {
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neo": (["attn.attention.k_proj", "attn.attention.v_proj"], ["mlp.c_proj"], ["attn"], ["mlp"]),
    "gptj": (["attn.k_proj", "attn.v_proj"], ["mlp.fc_out"], ["attn"], ["mlp"]),
    "gpt_neox": (["attention.query_key_value"], ["mlp.dense_4h_to_h"], ["attention"], ["mlp"]),
    "falcon": (["self_attention.query_key_value"], ["mlp.dense_4h_to_h"], ["self_attention"], ["mlp"]),
    # BLOOM's modules add the residual themselves; their last layers do not.
    "bloom": (
        ["self_attention.query_key_value"],
        ["mlp.dense_4h_to_h"],
        ["self_attention.dense"],
        ["mlp.dense_4h_to_h"],
    ),
    "opt": (_SEPARATE, ["fc2"], ["self_attn"], ["fc2"]),
    "phi": (_SEPARATE, ["mlp.fc2"], ["self_attn"], ["mlp"]),
    "phi3": (["self_attn.qkv_proj"], ["mlp.down_proj"], ["self_attn"], ["mlp"]),
}
OTHERS = {
    ("bert", "causal"): (
        ["attention.self.key", "attention.self.value"],
        ["output.dense"],
        ["attention.output.dense"],
        ["output.dense"],
    ),
    ("ctrl", "causal"): (
        ["multi_head_attention.Wk", "multi_head_attention.Wv"],
        ["ffn.2"],
        ["multi_head_attention"],
        ["ffn"],
    ),
    ("mamba", "causal"): ([], [], ["mixer"], []),
    ("rwkv", "causal"): ([], ["feed_forward.value"], ["attention"], ["feed_forward"]),
    ("mixtral", "causal"): (_SEPARATE, [], ["self_attn"], ["mlp"]),
    ("lfm2", "causal"): (_SEPARATE, ["feed_forward.w2"], ["conv", "self_attn"], ["feed_forward"]),
    ("deepseek_v3", "causal"): (
        ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"],
        ["mlp.down_proj", "mlp.shared_experts.down_proj"],
        ["self_attn"],
        ["mlp"],
    ),
    ("t5", "seq2seq"): (
        [f"layer.{i}.{where}Attention.{name}" for i, where in ((0, "Self"), (1, "EncDec")) for name in "kv"],
        ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
        ["layer.0.SelfAttention", "layer.1.EncDecAttention"],
        ["layer.1.DenseReluDense", "layer.2.DenseReluDense"],
    ),
}


def inside_blocks(model: Any) -> tuple[list[str], ...]:
    """The places by their names inside the blocks, each once, sorted."""
    places = places_of(model)
    found = (places.keys_and_values, places.feedforward_ends, places.attention, places.feedforward)
    return tuple(sorted({re.sub(r"^.*?\.\d+\.", "", name) for name in names}) for names in found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_known_model_types(kind: str):
    assert inside_blocks(tiny_model(kind)) == KNOWN.get(kind, _LLAMA)


@pytest.mark.parametrize(("kind", "task"), OTHERS)
def test_other_model_types(kind: str, task: str):
    assert inside_blocks(tiny_of(kind, task)) == OTHERS[kind, task]


@pytest.mark.parametrize("kind", ["bert", "mixtral", "deepseek_v3", "ctrl"])
def test_ia3_works_without_a_row_and_peft_reads_its_file(kind: str, tmp_path: Path):
    model = tiny_of(kind)
    inputs = _inputs(model)
    with torch.no_grad():
        base = model(**inputs).logits
        graft(model, IA3Config())
        assert torch.equal(model(**inputs).logits, base)
        shake(model)
        save_adapter(model, tmp_path)
        adapted = model(**inputs).logits
        assert relative_error(adapted, base) > 1e-4
        theirs = peft.PeftModel.from_pretrained(tiny_of(kind), tmp_path)
        assert relative_error(theirs(**inputs).logits, adapted) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "mixtral", "mamba", "lfm2", "rwkv"])
def test_bottlenecks_work_without_a_row(kind: str, tmp_path: Path):
    model = tiny_of(kind)
    inputs = _inputs(model)
    base = model(**inputs).logits.detach()
    adapter = active_adapter(graft(model, BottleneckConfig(reduction_factor=8)))
    assert len(adapter.bottlenecks) == (1 if kind == "mamba" else 2) * model.config.num_hidden_layers
    assert torch.equal(model(**inputs).logits, base)
    shake(model)
    model(**inputs).logits.sum().backward()
    assert all(parameter.grad.any() for one in adapter.bottlenecks.values() for parameter in one.parameters())
    save_adapter(model, tmp_path)
