"""Probes of large models on their first blocks: the same findings, and the model is left as it was."""

from typing import Any

import pytest
import torch

from tests.tiny import CONFIGS, logits, tiny_model
from tsugiki.fast import attends_to_later_tokens, detect_document_masking, has_chunked_loss, use_fast_paths
from tsugiki.model import blocks, decoder_blocks, on_first_blocks


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


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "gpt_neo", "bloom"])
def test_the_findings_are_those_of_all_blocks(kind: str, monkeypatch: pytest.MonkeyPatch):
    expected = _found(kind)
    monkeypatch.setattr(blocks, "_LARGE", 0)
    assert _found(kind) == expected


def test_each_kind_of_block_is_seen_and_small_models_are_whole(monkeypatch: pytest.MonkeyPatch):
    seen = on_first_blocks(lambda model: len(decoder_blocks(model)))
    model = _model("gemma3_text")
    assert seen(model) == 4
    monkeypatch.setattr(blocks, "_LARGE", 0)
    assert seen(model) == 3
    assert seen(_model("llama")) == 2
    assert seen(torch.nn.Linear(2, 2)) == 0


def test_an_error_with_some_blocks_means_all_of_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blocks, "_LARGE", 0)

    @on_first_blocks
    def probe(model: Any) -> int:
        count = len(decoder_blocks(model))
        if count < 4:
            raise IndexError
        return count

    assert probe(_model("llama")) == 4
