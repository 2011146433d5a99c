"""GGUF adapters: llama.cpp computes the same logits, the file has the factors, and errors match llama.cpp's."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.export.bases import finish, write_base
from tests.export.gguf_factors import read_factors
from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import ids, logits, save_grafted, tiny_model
from tsugiki import LoraConfig, disable_adapter
from tsugiki.adapters import LoraWeights, read_lora_weights
from tsugiki.export import llama_cpp_incompatibilities, write_gguf_adapter
from tsugiki.model import ARCHITECTURES

ROW = ids(1, 8)
TOKENS = ROW[0].tolist()
GEMMA = ("gemma", "gemma2", "gemma3_text", "gemma4_text")
ROUNDED_GELU = ("gpt2", *GEMMA, "phi", "gpt_neox", "bloom", "falcon")  # ggml's is a table
OVERRIDES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8},  # as in the released models, where it is the width of a head
    "gemma3_text": {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 2},  # each sixth is full there
}
FALCONS = [{"multi_query": False}, {"new_decoder_architecture": True, "num_kv_heads": 2}]
SHARED: dict[str, Any] = {  # the last two layers use the keys and values of the first two
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
CASES = [(kind, {}) for kind, row in ARCHITECTURES.items() if row.llama_cpp]
CASES += [("falcon", fields) for fields in FALCONS]
CASES += [("qwen3_5_text", {"linear_num_value_heads": 2}), ("gemma4_text", SHARED)]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def sharp_model(kind: str, **overrides: Any) -> Any:
    """A tiny model whose attention is not uniform, so that a wrong row order changes the logits."""
    model = tiny_model(kind, **OVERRIDES.get(kind, {}), **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and kind != "gpt2":
                parameter.mul_(6)
    return model


def grafted(kind: str, folder: Path, overrides: dict[str, Any], **fields: Any) -> tuple[Any, LoraWeights]:
    """A model with a random adapter, and the adapter's weights read from its folder."""
    model = sharp_model(kind, **overrides)
    save_grafted(folder, model, LoraConfig(**{"r": 4, "lora_alpha": 12, **fields}))
    return model, read_lora_weights(folder)


def same_in_llama_cpp(kind: str, folder: Path, overrides: dict[str, Any] | None = None, **fields: Any) -> None:
    pytest.importorskip("llama_cpp")
    model, lora = grafted(kind, folder / "a", overrides or {}, **fields)
    ours = logits(model, ROW)[0]
    with disable_adapter(model):
        base = logits(model, ROW)[0]
        file = write_base(sharp_model(kind, **overrides or {}), folder / "base.gguf")
    assert not llama_cpp_incompatibilities(lora, model)
    write_gguf_adapter(lora, model, folder / "a.gguf")
    tolerance = (4e-3 if kind in ROUNDED_GELU else 1e-5) * ours.abs().max()
    assert (llama_cpp_logits(file, TOKENS) - base).abs().max() < tolerance
    assert (llama_cpp_logits(file, TOKENS, folder / "a.gguf") - ours).abs().max() < tolerance
    assert (ours - base).abs().max() > 20 * tolerance


@pytest.mark.parametrize(("kind", "overrides"), CASES, ids=str)
def test_llama_cpp_computes_the_same_logits(kind: str, overrides: dict[str, Any], tmp_path: Path):
    ignored = ["per_layer_model_projection"] if kind == "gemma4_text" else None
    same_in_llama_cpp(kind, tmp_path, overrides, target_modules="all-linear", exclude_modules=ignored)


@pytest.mark.parametrize("layer", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_untied_head_and_embeddings(kind: str, layer: str, tmp_path: Path):
    same_in_llama_cpp(kind, tmp_path, target_modules=[layer])


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [1], "target_modules": ["k_proj"]},
    ],
)
def test_llama_cpp_computes_the_same_for_every_scaling(fields: dict[str, Any], tmp_path: Path):
    same_in_llama_cpp("llama", tmp_path, **fields)


def read_back(kind: str, folder: Path, **fields: Any) -> list[tuple[Any, ...]]:
    """A, B and the scaling of each layer in the exported file, and the layer of the adapter."""
    model, lora = grafted(kind, folder / "a", {}, **fields)
    write_gguf_adapter(lora, model, folder / "a.gguf")
    found = read_factors(folder / "a.gguf", model)
    assert found.keys() == lora.layers.keys()
    return [(*found[path], layer) for path, layer in lora.layers.items()]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma3_text", "gpt_neox", "falcon"])
def test_the_file_has_the_factors(kind: str, tmp_path: Path):
    for A, B, scaling, layer in read_back(kind, tmp_path):
        assert (torch.equal(A, layer.A), torch.equal(B, layer.B), scaling) == (True, True, layer.scaling)


def test_the_file_of_several_ranks_has_the_products(tmp_path: Path):
    targets = ["q_proj", "embed_tokens", "lm_head"]
    for A, B, scaling, layer in read_back(
        "llama", tmp_path, target_modules=targets, rank_pattern={"q_proj": 2}, use_rslora=True
    ):
        torch.testing.assert_close(scaling * B @ A, layer.scaling * layer.B @ layer.A)


# What llama.cpp itself does with files that are rejected here.


def _run_llama_cpp(base: Path, lora: Path) -> subprocess.CompletedProcess[str]:
    """Run llama.cpp in a new process, since ggml may abort; it prints the largest change of a logit."""
    pytest.importorskip("llama_cpp")
    code = (
        "from pathlib import Path; from tests.llama_cpp_logits import llama_cpp_logits as f; "
        f"b, l, t = Path({str(base)!r}), Path({str(lora)!r}), {TOKENS}; "
        "print(float((f(b, t, l) - f(b, t)).abs().max()))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def _write_pair(path: Path, name: str, shapes: tuple[tuple[int, int], tuple[int, int]]) -> Path:
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8)
    for letter, (rows, columns) in zip("ab", shapes, strict=True):
        factor = np.linspace(-1, 1, rows * columns, dtype=np.float32).reshape(rows, columns)
        writer.add_tensor(f"{name}.lora_{letter}", factor)
    finish(writer)
    return path


def test_llama_cpp_ignores_position_embeddings(tmp_path: Path):
    base = write_base(tiny_model("gpt2"), tmp_path / "base.gguf")
    ran = _run_llama_cpp(base, _write_pair(tmp_path / "a.gguf", "position_embd.weight", ((4, 32), (64, 4))))
    assert (ran.returncode, float(ran.stdout)) == (0, 0.0)
    _, lora = grafted("gpt2", tmp_path / "a", {}, target_modules=["wpe", "c_attn"])
    (said,) = llama_cpp_incompatibilities(lora, tiny_model("gpt2"))
    assert re.search("transformer.wpe.*position_embd", said)


def test_llama_cpp_rejects_tied_embeddings(tmp_path: Path):
    base = write_base(tiny_model("gpt2"), tmp_path / "base.gguf")
    table = _write_pair(tmp_path / "a.gguf", "token_embd.weight", ((96, 4), (32, 4)))
    assert _run_llama_cpp(base, table).returncode != 0
    head = _write_pair(tmp_path / "b.gguf", "output.weight", ((4, 32), (96, 4)))
    assert _run_llama_cpp(base, head).returncode != 0
    for layer in ("wte", "lm_head"):
        _, lora = grafted("gpt2", tmp_path / layer, {}, target_modules=[layer])
        assert "shared" in llama_cpp_incompatibilities(lora, tiny_model("gpt2"))[0]
