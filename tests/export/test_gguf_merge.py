"""Adapters merged into GGUF files: every tensor against a sum in float64, logits in llama.cpp, and what is refused."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.errors import assert_refused, refused
from tests.export.bases import write_base
from tests.export.test_gguf_adapter import CASES, ROUNDED_GELU, ROW, TOKENS, grafted, sharp_model
from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import logits, seeded
from tsugiki import LoraConfig, graft, save_adapter
from tsugiki.adapters.metadata import BaseReference
from tsugiki.base.gguf.file import read_header
from tsugiki.base.resolve import EMBEDDED, gguf_of_base
from tsugiki.export import gguf_merge
from tsugiki.export.gguf_merge import merge_into_gguf
from tsugiki.export.llama_cpp_layers import in_llama_cpp_order, layer_names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def merged(folder: Path, kind: str, overrides: dict[str, Any] | None = None, dtype: Any = "f16", **fields: Any) -> Any:
    """The model with its adapter, and the files of its base and of the merged model."""
    model, lora = grafted(kind, folder / "a", overrides or {}, **fields)
    plain = sharp_model(kind, **overrides or {})
    base = write_base(plain, folder / "base.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_merge, "load_meta_model", lambda name: plain)
        patch.setattr(gguf_merge, "not_a_whole_model", lambda header: None)  # the base has no tokenizer
        patch.setattr(gguf_merge, "_modelfile_text", lambda *_: "")
        merge_into_gguf(folder / "a", base, folder / "out.gguf", dtype)
    return SimpleNamespace(model=model, layers=lora.layers, plain=plain, base=base, out=folder / "out.gguf")


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {
        one.name: torch.tensor(gguf.dequantize(one.data, one.tensor_type)).double()
        for one in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize(("kind", "overrides"), CASES, ids=str)
def test_every_tensor_is_the_sum(kind: str, overrides: dict[str, Any], tmp_path: Path):
    made = merged(tmp_path, kind, overrides, target_modules="all-linear")
    before, after = tensors_of(made.base), tensors_of(made.out)
    names, changed = layer_names(made.plain), set()
    for path, layer in made.layers.items():
        B, A = in_llama_cpp_order(made.plain, path, layer.B.double(), layer.A.double())
        expected = before[f"{names[path]}.weight"] + layer.scaling * B @ A
        torch.testing.assert_close(after[f"{names[path]}.weight"], expected, rtol=1e-3, atol=1e-3)
        changed.add(f"{names[path]}.weight")
    assert changed
    assert all(torch.equal(after[name], before[name]) for name in before if name not in changed)


@pytest.mark.parametrize(("kind", "overrides"), CASES, ids=str)
def test_llama_cpp_computes_the_adapted_logits(kind: str, overrides: dict[str, Any], tmp_path: Path):
    pytest.importorskip("llama_cpp")
    made = merged(tmp_path, kind, overrides, target_modules="all-linear")
    ours = logits(made.model, ROW)[0]
    tolerance = (6e-3 if kind in ROUNDED_GELU else 4e-3) * ours.abs().max()
    assert (llama_cpp_logits(made.out, TOKENS) - ours).abs().max() < tolerance


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_a_head_that_shares_its_weight_gets_a_tensor_of_its_own(kind: str, tmp_path: Path):
    made = merged(tmp_path, kind, target_modules=["lm_head"])
    before, after = tensors_of(made.base), tensors_of(made.out)
    head = made.layers["lm_head"]
    expected = before["token_embd.weight"] + head.scaling * head.B.double() @ head.A.double()
    torch.testing.assert_close(after["output.weight"], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(after["token_embd.weight"], before["token_embd.weight"])
    pytest.importorskip("llama_cpp")
    ours = logits(made.model, ROW)[0]
    assert (llama_cpp_logits(made.out, TOKENS) - ours).abs().max() < 6e-3 * ours.abs().max()


def test_position_embeddings_are_merged_in_float32(tmp_path: Path):
    made = merged(tmp_path, "gpt2", dtype="q8_0", target_modules=["wpe"])
    (positions,) = (one for one in read_header(made.out).tensors if one.name == "position_embd.weight")
    assert positions.type.name == "F32"
    pytest.importorskip("llama_cpp")
    ours = logits(made.model, ROW)[0]
    assert (llama_cpp_logits(made.out, TOKENS) - ours).abs().max() < 6e-3 * ours.abs().max()


def embedded_adapter(folder: Path, **fields: Any) -> Path:
    """A folder with a random adapter of the embedded model, for a layer of 256 columns."""
    from tsugiki.base import load_model

    model = graft(load_model(EMBEDDED), LoraConfig(**{"r": 2, "target_modules": ["c_attn"], **fields}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(std=0.05, generator=seeded(0))
    save_adapter(model, folder)
    return folder


def test_metadata_and_other_tensors_are_the_same_bytes(tmp_path: Path):
    base = gguf_of_base(EMBEDDED)
    adapter = embedded_adapter(tmp_path / "a")
    (adapter / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    written = merge_into_gguf(adapter, base, tmp_path / "out.gguf")
    assert (written.merged, written.tensors) == (6, 76)
    before, after = read_header(base), read_header(tmp_path / "out.gguf")
    changed = {"general.file_type": 7, "general.quantization_version": 2, "tokenizer.chat_template": "{{ messages }}"}
    assert after.metadata == {**before.metadata, **changed}
    stored = {header: path.read_bytes() for header, path in ((0, base), (1, tmp_path / "out.gguf"))}
    for key in before.spans.keys() - changed.keys():
        (begin, end), (first, last) = before.spans[key], after.spans[key]
        assert stored[0][begin:end] == stored[1][first:last]
    for one, two in zip(before.tensors, after.tensors, strict=True):
        is_merged = ".attn_qkv.weight" in one.name
        assert two.type.name == ("Q8_0" if is_merged else one.type.name)
        assert is_merged or stored[0][one.begin : one.end] == stored[1][two.begin : two.end]
    text = (tmp_path / "out.Modelfile").read_text()
    assert text == 'FROM ./out.gguf\nPARAMETER num_ctx 512\nPARAMETER stop "<|endoftext|>"\n'


def test_a_quantised_tensor_is_read_in_its_own_type_and_rows_without_blocks_are_float16(tmp_path: Path):
    source = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    (tmp_path / "w").write_bytes(gguf.quantize(source, gguf.GGMLQuantizationType.Q4_0).tobytes())
    size = (tmp_path / "w").stat().st_size
    kind = gguf.GGMLQuantizationType
    tensor = gguf_merge.GgufTensor("w", kind.Q4_0, (64, 256), 0, size)
    update = torch.randn(64, 2), torch.randn(2, 256)
    planned = gguf_merge._Planned("w", tensor, kind.Q8_0, update)
    found = np.frombuffer(b"".join(gguf_merge._parts(tmp_path / "w", planned)), np.uint8).reshape(64, -1)
    stored = np.fromfile(tmp_path / "w", np.uint8).reshape(64, -1)
    expected = gguf.dequantize(stored, kind.Q4_0) + (update[0].double() @ update[1].double()).numpy()
    assert np.abs(gguf.dequantize(found, kind.Q8_0) - expected).max() < np.abs(expected).max() / 127
    assert planned.bytes == found.nbytes


def changed_base(path: Path, change: Any) -> Path:
    """The embedded model's GGUF file with other bytes."""
    path.write_bytes(change(gguf_of_base(EMBEDDED).read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda data: data[:-9], "is truncated"),
        (lambda data: data.replace(b"gpt2", b"gpt3", 1), "is a gpt3, and the adapter's base is a gpt2"),
        (lambda data: data.replace(b"blk.0.attn_qkv.weight", b"blk.9.attn_qkv.weight"), "blk.0.attn_qkv.*missing"),
        (lambda data: b"PK" + data, "not a GGUF file"),
    ],
)
def test_files_of_another_base_or_damaged_ones_are_refused(change: Any, fact: str, tmp_path: Path):
    base, adapter = changed_base(tmp_path / "base.gguf", change), embedded_adapter(tmp_path / "a")
    before = sorted(tmp_path.iterdir())
    assert_refused(fact, merge_into_gguf, adapter, base, tmp_path / "out.gguf")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("fields", "fact"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["ln_f"]}, "also trains .*ln_f"),
        ({"target_modules": ["wte"]}, "wte.*shared"),
    ],
)
def test_what_is_no_update_of_a_layer_is_refused(fields: dict[str, Any], fact: str, tmp_path: Path):
    adapter = embedded_adapter(tmp_path / "a", **fields)
    assert_refused(fact, merge_into_gguf, adapter, gguf_of_base(EMBEDDED), tmp_path / "out.gguf")


def test_an_adapter_of_another_gguf_file_needs_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    adapter, read = embedded_adapter(tmp_path / "a"), gguf_merge.read_lora_weights

    def trained_on_a_file(folder: Path) -> Any:
        return dataclasses.replace(read(folder), base=BaseReference(name="x.gguf", fingerprint="sha256:" + "0" * 64))

    monkeypatch.setattr(gguf_merge, "read_lora_weights", trained_on_a_file)
    arguments: Any = (adapter, gguf_of_base(EMBEDDED), tmp_path / "out.gguf")
    with refused("another GGUF file .*--allow-base-mismatch"):
        merge_into_gguf(*arguments, model_name=EMBEDDED)
    assert merge_into_gguf(*arguments, model_name=EMBEDDED, allow_base_mismatch=True).merged == 6


def test_a_base_without_a_known_file_names_the_ways(monkeypatch: pytest.MonkeyPatch):
    assert_refused("known for me/model; .*--base-gguf.*convert_hf_to_gguf", gguf_of_base, "me/model")
    assert_refused("x.gguf", gguf_of_base, EMBEDDED, "./x.gguf")
    asked = []

    def download(name: str, wanted: set[str]) -> Path:
        asked.append((name, wanted))
        return Path("cache")

    monkeypatch.setattr("tsugiki.base.resolve._download", download)
    assert gguf_of_base("google/gemma-3-270m") == Path("cache/gemma-3-270m-Q8_0.gguf")
    assert gguf_of_base(None, "me/model-GGUF/q8/m.gguf") == Path("cache/q8/m.gguf")
    assert asked[1] == ("me/model-GGUF", {"q8/m.gguf"})
