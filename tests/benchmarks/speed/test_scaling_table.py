"""The tables of the guide to scaling are computed from counts that a model confirms."""

from pathlib import Path

import pytest
import torch
from benchmarks.guide_tables import guide_language
from benchmarks.speed.scaling_table import ETHERNET, LLAMA_8B, QWEN_1_7B, Decoder, Setup, fill_guide
from transformers import AutoConfig

from tsugiki import LoraConfig, graft, trainable_parameters
from tsugiki.model import meta_model

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("decoder", "model_type", "norms"), [(LLAMA_8B, "llama", 0), (QWEN_1_7B, "qwen3", 28 * 256)])
def test_parameters_are_those_of_the_model(decoder: Decoder, model_type: str, norms: int):
    sizes = {
        "num_hidden_layers": decoder.layers,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.inner,
        "num_attention_heads": decoder.width // 128,
        "num_key_value_heads": decoder.key_width // 128,
        "head_dim": 128,
        "vocab_size": decoder.vocabulary,
        "tie_word_embeddings": decoder.tied,
    }
    model = meta_model(AutoConfig.for_model(model_type, **sizes))
    assert sum(weight.numel() for weight in model.parameters()) == decoder.parameters + norms  # Qwen has more norms
    with torch.device("meta"):
        graft(model, LoraConfig(r=16, target_modules="all-linear"))
    assert sum(weight.numel() for weight in trainable_parameters(model).values()) == decoder.adapter(16)


def test_a_step_on_64_cards_by_hand():
    setup = Setup(LLAMA_8B, cards=64, rows=4)
    assert setup.reduced_bytes() == 4 * 41_943_040
    assert setup.sent_bytes() == (2 * 63 / 64 * 4 * 41_943_040, 0)
    seconds = 4 * 8_030_261_248 * 4 * 1024 / 400e12
    assert setup.computing_seconds() == pytest.approx(seconds)
    assert setup.efficiency(ETHERNET) == pytest.approx(seconds / (seconds + setup.sent_bytes()[0] / 12.5e9))

    split = Setup(LLAMA_8B, cards=64, split=True, rows=1)
    head_and_embedding = 2 * 128_256 * 4096 + 4096
    read = 2 * (2 * (8_030_261_248 - head_and_embedding) + head_and_embedding)
    assert split.sent_bytes()[1] == pytest.approx(4 * 63 / 64 * read)


@pytest.mark.parametrize("name", ["scaling.md", "scaling.ja.md"])
def test_the_guides_have_the_computed_table(name: str):
    guide = ROOT / "docs" / name
    text = guide.read_text(encoding="utf-8")
    assert text.count("<!-- computed: ") == 1
    assert fill_guide(text, guide_language(guide)) == text, (
        "python -m benchmarks.speed.scaling_table docs/scaling.md docs/scaling.ja.md"
    )
