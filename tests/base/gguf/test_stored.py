"""GGUF files whose layers stay quantised: their weights and logits compared with those of the converted file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.base.gguf.files import TOKENS, Kind, tiny_base, write_gguf
from tests.tiny import ids, logits
from tsugiki import LoraConfig, TsugikiError, graft
from tsugiki.base import VERIFIED, GgufLinear, load_model, load_tokenizer
from tsugiki.base.gguf import conversion_cache
from tsugiki.base.loading import load_config
from tsugiki.lowbit import count_parameters, quantized_layer

KINDS = {"gemma3": "gemma3_text"}


@pytest.fixture
def only_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the weights of a file are converted."""
    monkeypatch.setattr(conversion_cache, "write_folder", lambda *_: pytest.fail("the weights are converted"))


def _write(path: Path, architecture: str, kind: Kind, **overrides: Any) -> str:
    overrides = {"intermediate_size": 64, **overrides} if architecture != "gpt2" else overrides
    return str(write_gguf(path, tiny_base(KINDS.get(architecture, architecture), **overrides), kind))


def _settings(path: str) -> dict[str, Any]:
    return load_config(path).to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize("architecture", VERIFIED)
def test_the_model_is_that_of_the_converted_file(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.base.loading.preferred_compute_dtype", lambda: "fp32")
    monkeypatch.setattr(quantized_layer, "integers_pay", lambda x: False)
    path = _write(tmp_path / "tiny.gguf", architecture, Kind.Q4_0)
    with monkeypatch.context() as patch:
        patch.setattr(conversion_cache, "write_folder", lambda *_: pytest.fail("the weights are converted"))
        stored = load_model(path, "stored")
    settings = _settings(path)
    whole = load_model(path)
    layers = {name: layer for name, layer in stored.named_modules() if isinstance(layer, GgufLinear)}
    assert len(layers) >= 4 * 2
    for name, layer in layers.items():
        other: Any = whole.get_submodule(name)
        weight = other.weight if isinstance(other, torch.nn.Linear) else other.weight.T
        assert torch.allclose(layer.dequantize(), weight, rtol=1e-3, atol=1e-6), name  # the converted one has 16 bits
    tokens = ids(2, 40, len(TOKENS))
    assert (logits(stored, tokens) - logits(whole, tokens)).norm() / logits(whole, tokens).norm() < 2e-3
    assert count_parameters(stored) == count_parameters(whole)
    assert settings == _settings(path)
    assert stored.generation_config.eos_token_id == whole.generation_config.eos_token_id
    assert not stored.training
    assert not any(parameter.requires_grad for parameter in stored.parameters())


@pytest.mark.usefixtures("only_settings")
def test_an_untied_head_stays_quantised_and_other_types_are_unpacked(tmp_path: Path):
    path = _write(tmp_path / "tiny.gguf", "llama", Kind.Q8_0, tie_word_embeddings=False)
    assert isinstance(load_model(path, "stored").lm_head, GgufLinear)
    path = _write(tmp_path / "half.gguf", "llama", Kind.F16)
    assert not any(isinstance(layer, GgufLinear) for layer in load_model(path, "stored").modules())
    path = _write(tmp_path / "other.gguf", "llama", Kind.TQ1_0, hidden_size=256, intermediate_size=256)
    with pytest.warns(UserWarning, match=r"other.gguf: 15 layers of the types TQ1_0 "):
        load_model(path, "stored")


@pytest.mark.usefixtures("only_settings")
def test_an_adapter_trains_on_it(tmp_path: Path):
    path = _write(tmp_path / "tiny.gguf", "llama", Kind.Q8_0)
    model = load_model(path, "stored")
    graft(model, LoraConfig(r=2))
    assert load_tokenizer(path)("the cat").input_ids
    tokens = ids(2, 20, len(TOKENS))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(8):
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_other_models_have_no_quantisation_to_keep(tmp_path: Path):
    with pytest.raises(TsugikiError, match="embedded is no GGUF file"):
        load_model("embedded", "stored")
    model = tiny_base("llama")
    path = write_gguf(tmp_path / "tiny.gguf", model, settings={"llama.block_count": 3})
    with pytest.raises(TsugikiError, match=r"layers\.2\."):
        load_model(str(path), "stored")
