"""Models as GGUF files. The oracles are llama.cpp's logits and the reader of the gguf package."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.export.bases import finish
from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import byte_tokenizer, ids, logits, relative_error, save_tiny, tiny_model
from tsugiki.errors import TsugikiError
from tsugiki.export import GGUF_ARCHITECTURES, gguf_architecture_of, stored_model, write_model_gguf
from tsugiki.model import ARCHITECTURES

_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
_GEMMA3 = {**_GEMMA, "num_hidden_layers": 6, "layer_types": None}
_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
_LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_LLAMA3 = {**_LINEAR, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_BY_LAYER = {"sliding_attention": _LOCAL, "full_attention": {**_LINEAR, "factor": 8.0, "rope_theta": 1e6}}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2, narrow": ("gpt2", {"n_inner": 48}),
    "llama": ("llama", {}),
    "llama, biases, one embedding": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama 3": ("llama", {"rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 32}}),
    "llama, linear": ("llama", {"rope_parameters": _LINEAR}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA3),
    "gemma3, untied head": ("gemma3_text", {**_GEMMA3, "tie_word_embeddings": False}),
    "gemma3, linear": ("gemma3_text", {**_GEMMA3, "rope_parameters": _BY_LAYER}),
    "gemma3, softcap": ("gemma3_text", {**_GEMMA3, "final_logit_softcapping": 5.0}),
}


def _save(folder: Path, kind: str, **overrides: Any) -> str:
    """As `save_tiny`, with attention and positions that matter."""
    model = tiny_model(kind, **{"vocab_size": 257, **overrides})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.mul_(12)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def _error_in_llama_cpp(file: Path, folder: str) -> float:
    """How far llama.cpp's logits of a file are from those of transformers."""
    row = ids(1, 40, 257)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return relative_error(llama_cpp_logits(file, row[0].tolist()), logits(plain, row)[0])


def _tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_every_architecture_of_the_table_is_tested() -> None:
    written = {kind for kind, row in ARCHITECTURES.items() if row.llama_cpp in GGUF_ARCHITECTURES}
    assert {kind for kind, _ in MODELS.values()} == written


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    kind, overrides = MODELS[name]
    folder = _save(tmp_path / "model", kind, **overrides)
    written = write_model_gguf(stored_model(folder), tmp_path / "m.gguf")
    assert written.tensors == len(_tensors(tmp_path / "m.gguf"))
    assert _error_in_llama_cpp(tmp_path / "m.gguf", folder) < 2e-3


def test_keys_without_the_models_prefix(tmp_path: Path) -> None:
    """As GPT-2's own file on the hub has them, with its buffers."""
    folder = save_tiny(tmp_path / "model", "gpt2")
    write_model_gguf(stored_model(folder), tmp_path / "long.gguf")
    path = Path(folder) / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, path)
    write_model_gguf(stored_model(folder), tmp_path / "short.gguf")
    assert (tmp_path / "short.gguf").read_bytes() == (tmp_path / "long.gguf").read_bytes()


@pytest.mark.parametrize(
    ("dtype", "kind", "error"),
    [("f32", Kind.F32, 0.0), ("f16", Kind.F16, 1e-3), ("bf16", Kind.BF16, 8e-3), ("q8_0", Kind.Q8_0, 1e-2)],
)
def test_matrices_have_the_given_dtype_and_vectors_are_float32(
    dtype: Any, kind: Kind, error: float, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    write_model_gguf(stored_model(folder), tmp_path / "m.gguf", dtype)
    tensors = _tensors(tmp_path / "m.gguf")
    weights, up = load_file(Path(folder) / "model.safetensors"), tensors["blk.0.ffn_up.weight"]
    assert up.tensor_type == kind
    values = torch.tensor(gguf.dequantize(up.data, up.tensor_type))
    assert relative_error(values, weights["model.layers.0.mlp.up_proj.weight"]) <= error
    assert tensors["blk.0.attn_norm.weight"].tensor_type == Kind.F32
    # 48 columns are no whole number of blocks of 32
    assert tensors["blk.0.ffn_down.weight"].tensor_type == (Kind.F16 if dtype == "q8_0" else kind)
    assert _error_in_llama_cpp(tmp_path / "m.gguf", folder) < 0.05


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float16, "f16"), (torch.bfloat16, "bf16")])
def test_a_model_in_16_bits_keeps_its_dtype(dtype: torch.dtype, stored: str, tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=257).to(dtype).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    assert write_model_gguf(stored_model(str(tmp_path / "model")), tmp_path / "m.gguf").dtype == stored


def test_metadata_of_the_original_file_are_copied(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    source = stored_model(folder)
    write_model_gguf(source, tmp_path / "plain.gguf")
    original = tmp_path / "original.gguf"
    _copy_with(tmp_path / "plain.gguf", original, {"general.license": "apache-2.0", "tokenizer.ggml.pre": "smollm"})
    write_model_gguf(source, tmp_path / "kept.gguf", "f16", original=original)
    kept, before = (gguf.GGUFReader(path).fields for path in (tmp_path / "kept.gguf", original))
    differing = {key for key in before if before[key].contents() != kept[key].contents()}
    assert differing == {"general.file_type"}
    assert kept["tokenizer.ggml.token_type"].types == before["tokenizer.ggml.token_type"].types
    assert _error_in_llama_cpp(tmp_path / "kept.gguf", folder) < 2e-3
    other = stored_model(save_tiny(tmp_path / "other", "qwen2"))
    with pytest.raises(TsugikiError, match="llama.*257.*qwen2"):
        write_model_gguf(other, tmp_path / "no.gguf", original=original)
    assert not (tmp_path / "no.gguf").exists()


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("opt", {}, "'opt'.* gpt2, llama, mistral"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("mistral", {}, "sliding_window is 8"),
        ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("gemma2", {}, "query_pre_attn_scalar is 256"),
        ("gemma3_text", _GEMMA, "layer_types"),
    ],
)
def test_unsupported_config_fields_are_named(kind: str, overrides: Any, said: str) -> None:
    config = tiny_model(kind, **overrides).config
    with pytest.raises(TsugikiError, match=said):
        gguf_architecture_of(config).hyperparameters(config)


def _copy_with(path: Path, out: Path, fields: dict[str, str]) -> None:
    """A GGUF file with some strings set."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", *fields):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, inner)
    for key, text in fields.items():
        writer.add_string(key, text)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    finish(writer)
