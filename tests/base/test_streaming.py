"""Quantised loading tensor by tensor: the result is that of loading whole and quantising, and there is no peak."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.errors import assert_refused
from tests.files import edit_json
from tests.tiny import CONFIGS, logits, save_tiny, tiny_model
from tests.tiny_types import tiny_of
from tsugiki.base import load_model, loading
from tsugiki.lowbit import Nf4Linear, count_parameters

OTHERS = sorted(CONFIGS.keys() - {"gpt2", "llama", "gemma3_text"})


def _loaded_whole(folder: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_load_quantized", lambda *_: None)
        return load_model(folder, dtype)


def _streamed(folder: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_load_by_transformers", lambda *_: pytest.fail("not loaded tensor by tensor"))
        return load_model(folder, dtype)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "kind", ["gpt2", "llama", "gemma3_text", *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
)
def test_the_model_is_that_of_loading_whole_and_quantising(kind: str, half: bool, tmp_path: Path, monkeypatch: Any):
    folder = str(tmp_path)
    model = tiny_model(kind, vocab_size=257)
    (model.bfloat16() if half else model).save_pretrained(folder, max_shard_size="30KB")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    for dtype in ("int8", "nf4", "nf4-int8"):
        streamed, whole = (load(folder, dtype, monkeypatch) for load in (_streamed, _loaded_whole))
        expected = dict(whole.named_parameters())
        found = dict(streamed.named_parameters())
        assert found.keys() == expected.keys()
        for name, parameter in found.items():
            assert parameter.dtype == expected[name].dtype
            assert torch.equal(parameter, expected[name]), name
        # Where models are computed in float32, a model that is loaded whole in bfloat16 keeps buffers that are rounded
        # to it, such as Gemma's embed_scale.
        rounded = half and streamed.dtype == torch.float32
        torch.testing.assert_close(logits(streamed), logits(whole), rtol=0, atol=1e-4 if rounded else 0)
        assert {name for name, _ in streamed.named_buffers()} == {name for name, _ in whole.named_buffers()}
        assert count_parameters(streamed) == count_parameters(whole)
        assert streamed.generation_config.temperature == 0.5
        assert streamed.config.to_dict() == whole.config.to_dict()
        assert not streamed.training


def test_what_transformers_must_decide_on_is_left_to_it(llama: Path):
    path = llama / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.layers.0.mlp.up_proj.other": torch.zeros(2)}, path)
    assert_refused("other", load_model, str(llama), "nf4")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    for dtype in ("int8", "fp32"):
        assert_refused(r"layers.1.mlp.up_proj.weight .*\(1 ", load_model, str(llama), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_a_damaged_file_or_weight_is_one_line(dtype: Any, llama: Path):
    path = llama / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    assert_refused(r"model.layers.1.mlp.up_proj", load_model, str(llama), dtype)
    path.write_bytes(path.read_bytes()[:-10])
    assert_refused("broken", load_model, str(llama), dtype)


def _set_quantization(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "config.json"
    edit_json(path, quantization_config=settings)


def test_transformers_dequantises_fp8(tmp_path: Path):
    model = tiny_model("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in [key for key in tensors if "_proj" in key]:
        scale = torch.rand(tensors[key].shape[0] // 16, tensors[key].shape[1] // 16) / 100 + 0.01
        each = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
        codes = (tensors[key] / each).to(torch.float8_e4m3fn)
        model.get_parameter(key).data = codes.float() * each
        tensors |= {key: codes, f"{key}_scale_inv": scale}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _set_quantization(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"})
    loaded = load_model(str(tmp_path), "fp32")
    assert torch.equal(logits(loaded), logits(model))
    assert getattr(loaded.config, "quantization_config", None) is None
    assert isinstance(load_model(str(tmp_path), "nf4").model.layers[0].mlp.up_proj, Nf4Linear)


def test_transformers_dequantises_mxfp4(tmp_path: Path):
    model = tiny_of("gpt_oss", hidden_size=32, intermediate_size=32)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = tensors.pop(key).shape
        tensors[f"{key}_blocks"] = torch.full((experts, out, width // 32, 16), 0x22, dtype=torch.uint8)  # the code of 1
        tensors[f"{key}_scales"] = torch.full((experts, out, width // 32), 124, dtype=torch.uint8)  # 2 ** -3
        model.get_parameter(key).data.fill_(0.125)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _set_quantization(tmp_path, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    assert torch.allclose(logits(load_model(str(tmp_path), "fp32")), logits(model), atol=1e-5)


def test_other_formats_are_refused_by_name(llama: Path):
    for method in ("gptq", "bitsandbytes"):
        _set_quantization(llama, {"quant_method": method, "load_in_4bit": True})
        assert_refused(method, load_model, str(llama), "nf4")


_CHILD = """if True:
    import sys
    from pathlib import Path
    from tsugiki.base.loading import load_model

    def peak(key):
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)

    load_model(sys.argv[2], sys.argv[1])  # imports, and buffers that are kept
    before = peak("VmRSS")
    model = load_model(sys.argv[3], sys.argv[1])
    size = sum(t.numel() * t.element_size() for t in {id(p): p for p in model.parameters()}.values())
    print(before * 1024, size, peak("VmHWM") * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_the_peak_is_the_finished_model_and_one_tensor(dtype: str, tmp_path: Path):
    """A model of 1.2 GB in float32 would be seen in the peak if it, or one shard of it, were kept."""
    small = save_tiny(tmp_path / "small", "llama")
    model = tiny_model("llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=18, vocab_size=8000)
    largest = max(parameter.numel() * 4 for parameter in model.parameters())
    model.save_pretrained(tmp_path / "large", max_shard_size="300MB")
    del model
    arguments = [sys.executable, "-c", _CHILD, dtype, small, str(tmp_path / "large")]
    before, size, peak = map(int, subprocess.run(arguments, check=True, capture_output=True).stdout.split())
    assert peak - before < size + 2 * largest + 40_000_000
