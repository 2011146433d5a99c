"""Passes through a model that does not train, and probes of large models on their first blocks."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import CONFIGS, logits, tiny_model
from tests.tiny_types import tiny_of
from tsugiki.fast import attends_to_later_tokens, detect_document_masking, has_chunked_loss, use_fast_paths
from tsugiki.model import (
    decoder_blocks,
    evaluating,
    inference,
    on_first_blocks,
    probe_ids,
    probe_logits,
    same_to_rounding,
)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.03), (torch.float32, 5e-4)])
def test_rounding_is_told_from_a_difference(dtype: torch.dtype, share: float):
    torch.manual_seed(0)
    logits = torch.randn(96, 500).to(dtype)
    noise = torch.randn(96, 500) * share
    noise[7, 3] = 100 * share  # one logit that went astray
    assert same_to_rounding((logits.float() + noise).to(dtype), logits)
    assert not same_to_rounding((logits.float() + 3 * noise).to(dtype), logits)
    assert not same_to_rounding(logits * float("nan"), logits)


def test_a_probe_spreads_over_the_vocabulary():
    model = tiny_model()
    ids = probe_ids(model, 5)
    assert ids.shape == (1, 5)
    assert ids[0, 0] == 0
    assert ids[0, -1] == model.config.vocab_size - 1
    model.train()
    first, second = probe_logits(model), probe_logits(model)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert model.training
    assert probe_logits(nn.Linear(2, 2)) is None


def test_both_sides_of_an_encoder_decoder_model_are_probed():
    model = tiny_of("t5", "seq2seq")
    found = probe_logits(model)
    assert found is not None
    ids = probe_ids(model)
    with torch.no_grad():
        assert torch.equal(found, model(input_ids=ids, decoder_input_ids=ids).logits)
    assert probe_logits(tiny_of("whisper", "speech")) is None  # it takes sounds


def _model(kind: str) -> Any:
    config = CONFIGS[kind]
    if "layer_types" in config:
        return tiny_model(kind, num_hidden_layers=4, layer_types=["sliding_attention"] * 2 + ["full_attention"] * 2)
    name = next(name for name in ("num_hidden_layers", "n_layer", "num_layers") if name in config)
    more = {"attention_types": [[["global", "local"], 2]]} if "attention_types" in config else {}
    return tiny_model(kind, **{name: 4}, **more)


def _found(kind: str) -> tuple[Any, ...]:
    model = _model(kind)
    expected = logits(model)
    masking, later = detect_document_masking(model), attends_to_later_tokens(model)
    use_fast_paths(model, modules=False)
    assert len(decoder_blocks(model)) == model.config.num_hidden_layers == 4
    assert (logits(model) - expected).norm() <= 1e-4 * expected.norm()
    return masking, later, model.config._attn_implementation, has_chunked_loss(model)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_neo"])
def test_the_findings_are_those_of_all_blocks(kind: str, monkeypatch: pytest.MonkeyPatch):
    expected = _found(kind)
    monkeypatch.setattr(inference, "_LARGE", 0)
    assert _found(kind) == expected


def test_each_kind_of_block_is_seen_and_small_models_are_whole(monkeypatch: pytest.MonkeyPatch):
    seen = on_first_blocks(lambda model: len(decoder_blocks(model)))
    model = _model("gemma3_text")
    assert seen(model) == 4
    monkeypatch.setattr(inference, "_LARGE", 0)
    assert seen(model) == 3
    assert seen(_model("llama")) == 2
    assert seen(torch.nn.Linear(2, 2)) == 0


def test_an_error_with_some_blocks_means_all_of_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "_LARGE", 0)

    @on_first_blocks
    def probe(model: Any) -> int:
        count = len(decoder_blocks(model))
        if count < 4:
            raise IndexError
        return count

    assert probe(_model("llama")) == 4


def test_evaluating_restores_the_mode_of_every_submodule():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)))
    model.train()
    model[1][0].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(2)).requires_grad
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
