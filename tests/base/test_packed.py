"""Checkpoints in GPTQ, AWQ, FP8 and MXFP4: weights by hand from the formats, or by transformers, and whole models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import logits, tiny_model
from tsugiki import TsugikiError
from tsugiki.base import encode, load_model, loading, unpack_awq, unpack_fp8, unpack_gptq, unpack_mxfp4
from tsugiki.lowbit import Int8Linear, Nf4Linear

OUT, IN, GROUP = 16, 32, 8


def _words(fields: Tensor, bits: int, order: Any = None) -> Tensor:
    """Pack [rows, n] into int32 [rows, n · bits / 32] in plain Python; `order` says which field goes to which place."""
    per_word = 32 // bits
    rows = []
    for row in fields.tolist():
        words = []
        for start in range(0, len(row), per_word):
            part = row[start : start + per_word]
            places = part if order is None else [part[i] for i in order]
            word = sum(value << bits * place for place, value in enumerate(places))
            words.append(word - (1 << 32) if word >> 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def _draw(bits: int, out: int = OUT, into: int = IN, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Return random codes [out, in], zeros from 1 on [groups, out] and scales [groups, out]."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (out, into), generator=generator)
    zeros = torch.randint(1, 1 << bits, (into // group, out), generator=generator)
    return codes, zeros, (torch.rand(into // group, out, generator=generator) * 0.02).half()


def _weight(codes: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    """Compute the weight one number at a time."""
    weight = torch.empty(codes.shape)
    for o in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            g = int(groups[i])
            weight[o, i] = scales[g, o].float() * (int(codes[o, i]) - int(zeros[g, o]))
    return weight


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("added", [0, 1])
def test_gptq_by_hand(bits: int, in_order: bool, added: int):
    codes, zeros, scales = _draw(bits)
    groups = torch.arange(IN) // GROUP
    groups = groups if in_order else groups[torch.randperm(IN, generator=torch.Generator().manual_seed(1))]
    packed = _words(codes, bits).T.contiguous(), _words(zeros - added, bits), scales
    expected = _weight(codes, zeros, scales, groups)
    assert torch.equal(unpack_gptq(*packed, groups.int(), bits, added), expected)
    if in_order:
        assert torch.equal(unpack_gptq(*packed, None, bits, added), expected)


def test_awq_by_hand():
    codes, zeros, scales = _draw(4)
    order = (0, 2, 4, 6, 1, 3, 5, 7)  # of the outputs in a word
    packed = _words(codes.T, 4, order), _words(zeros, 4, order), scales
    assert torch.equal(unpack_awq(*packed), _weight(codes, zeros, scales, torch.arange(IN) // GROUP))
    # The word 0x75316420 holds the outputs 0 to 7 in this order.
    word = torch.tensor([[0x75316420]], dtype=torch.int32)
    one = unpack_awq(word, torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 8))
    assert one[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_mxfp4_is_what_transformers_computes():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 135, (3, 10, 2), generator=generator, dtype=torch.uint8)
    found = unpack_mxfp4(blocks, scales)
    assert found.shape == (3, 64, 10)
    assert torch.equal(found, convert_moe_packed_tensors(blocks, scales))
    assert found[0, 0, 0] == [0, 0.5, 1, 1.5, 2, 3, 4, 6][blocks[0, 0, 0, 0] & 7] * 2.0 ** (scales[0, 0, 0] - 127.0) * (
        -1 if blocks[0, 0, 0, 0] & 8 else 1
    )


def test_fp8_in_blocks_and_with_one_scale():
    weight = torch.randn(48, 40)
    codes, scale = encode(weight, (32, 32), torch.float32)
    found = unpack_fp8(codes, scale, (32, 32))
    assert torch.equal(found[32:, 32:], codes[32:, 32:].float() * scale[1, 1])
    assert (found - weight).norm() / weight.norm() < 0.04
    assert torch.equal(unpack_fp8(codes, torch.tensor(0.5), None), codes.float() / 2)
    with pytest.raises(ValueError, match="blocks"):
        unpack_fp8(codes, scale, (16, 16))


def _pack(model: Any, folder: Path, method: str) -> dict[str, Tensor]:
    """Save a model with its linear layers packed, and give it the weights that the files hold."""
    layers = {p: m for p, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in p}
    model.save_pretrained(folder)
    tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
    for path, layer in layers.items():
        out, into = layer.weight.shape
        codes, zeros, scales = _draw(4, out, into)
        if method == "fp8":
            quantized, scale = encode(layer.weight.detach(), (32, 32), torch.float32)
            tensors |= {f"{path}.weight": quantized, f"{path}.weight_scale_inv": scale}
            layer.weight.data = unpack_fp8(quantized, scale, (32, 32))
            continue
        del tensors[f"{path}.weight"]
        groups = torch.arange(into) // GROUP
        if method == "gptq":
            groups = groups.flip(0)
            packed = {"qweight": _words(codes, 4).T.contiguous(), "qzeros": _words(zeros - 1, 4), "g_idx": groups.int()}
        else:
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            packed = {"qweight": _words(codes.T, 4, order), "qzeros": _words(zeros, 4, order)}
        tensors |= {f"{path}.{name}": t for name, t in (packed | {"scales": scales}).items()}
        layer.weight.data = _weight(codes, zeros, scales, groups)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "gptq": {"bits": 4, "group_size": GROUP, "desc_act": True, "sym": False},
        "awq": {"bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
        "fp8": {"weight_block_size": [32, 32], "activation_scheme": "dynamic"},
    }
    _set(folder, {"quant_method": method, **settings[method]})
    return tensors


def _set(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_a_model_is_loaded_in_every_dtype(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "_load_by_transformers", lambda *_: pytest.fail("not loaded tensor by tensor"))
    model = tiny_model("llama", hidden_size=32, intermediate_size=64)
    _pack(model, tmp_path, method)
    expected = model.state_dict()
    exact = load_model(str(tmp_path), "fp32")
    assert exact.state_dict().keys() == expected.keys()
    assert all(torch.equal(t, expected[name]) for name, t in exact.state_dict().items())
    assert torch.equal(logits(exact), logits(model))
    assert getattr(exact.config, "quantization_config", None) is None
    assert load_model(str(tmp_path), "bf16").model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    for dtype, kind in (("int8", Int8Linear), ("nf4", Nf4Linear)):
        layer = load_model(str(tmp_path), dtype).model.layers[1].mlp.down_proj  # type: ignore[arg-type]
        assert type(layer) is kind
        expected_layer = kind(expected["model.layers.1.mlp.down_proj.weight"], None, layer.dtype)
        assert torch.equal(layer.dequantize(), expected_layer.dequantize())


def test_experts_in_mxfp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import GptOssConfig, GptOssForCausalLM

    monkeypatch.setattr(loading, "_load_by_transformers", lambda *_: pytest.fail("not loaded tensor by tensor"))
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"],
        pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GptOssForCausalLM(config).eval()
    experts = "model.layers.0.mlp.experts"
    model.save_pretrained(tmp_path)
    tensors = {name: t.clone() for name, t in load_file(tmp_path / "model.safetensors").items()}
    for name, out in (("gate_up_proj", 64), ("down_proj", 32)):
        blocks = torch.randint(0, 256, (4, out, 1, 16), dtype=torch.uint8)
        scales = torch.randint(118, 122, (4, out, 1), dtype=torch.uint8)
        del tensors[f"{experts}.{name}"]
        tensors |= {f"{experts}.{name}_blocks": blocks, f"{experts}.{name}_scales": scales}
        model.get_parameter(f"{experts}.{name}").data = unpack_mxfp4(blocks, scales).float()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _set(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    loaded = load_model(str(tmp_path), "fp32")
    assert torch.allclose(logits(loaded), logits(model), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 3}, "GPTQ .*3 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ .*marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ .*gemv"),
    ],
)
def test_other_variants_are_refused_by_name(settings: dict[str, Any], message: str, tmp_path: Path):
    model = tiny_model("llama", hidden_size=32, intermediate_size=64)
    _pack(model, tmp_path, "awq" if settings["quant_method"] == "awq" else "gptq")
    _set(tmp_path, settings)
    with pytest.raises(TsugikiError, match=message) as error:
        load_model(str(tmp_path), "bf16")
    assert "\n" not in str(error.value)


def test_tensors_that_do_not_fit_are_one_line(tmp_path: Path):
    model = tiny_model("llama", hidden_size=32, intermediate_size=64)
    tensors = _pack(model, tmp_path, "gptq")
    name = "model.layers.0.mlp.up_proj"
    for changed in ({"scales": tensors[f"{name}.scales"][1:]}, {"qweight": tensors[f"{name}.qweight"][1:]}):
        wrong = {f"{name}.{key}": value.contiguous() for key, value in changed.items()}
        save_file(tensors | wrong, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(TsugikiError, match=r"layers\.0\.mlp\.up_proj\.weight is"):
            load_model(str(tmp_path), "int8")
