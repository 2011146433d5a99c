"""The tables of the guide to scaling are computed from counts that a model confirms."""

from pathlib import Path

import pytest
import torch
from benchmarks.guide_tables import guide_language
from benchmarks.speed.scaling_table import ETHERNET, LLAMA_8B, QWEN_1_7B, Decoder, Setup, fill_guide, main
from transformers import AutoConfig

from tsugiki import LoraConfig, graft, trainable_parameters
from tsugiki.model import meta_model

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("decoder", "model_type", "norms"), [(LLAMA_8B, "llama", 0), (QWEN_1_7B, "qwen3", 28 * 256)])
def test_parameters_are_those_of_the_model(decoder: Decoder, model_type: str, norms: int):
    heads = decoder.width // 128
    config = AutoConfig.for_model(
        model_type,
        num_hidden_layers=decoder.layers,
        hidden_size=decoder.width,
        intermediate_size=decoder.inner,
        num_attention_heads=heads,
        num_key_value_heads=decoder.key_width // 128,
        head_dim=128,
        vocab_size=decoder.vocabulary,
        tie_word_embeddings=decoder.tied,
    )
    model = meta_model(config)
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


def test_tables_are_filled_in(tmp_path: Path):
    guide = tmp_path / "guide.ja.md"
    guide.write_text("前\n<!-- computed: step -->\nold\n<!-- end of table -->\n後\n", encoding="utf-8")
    main([str(guide)])
    text = guide.read_text(encoding="utf-8")
    assert "old" not in text
    assert "| Llama 3 8B | LoRA | 複製 | 64 | 0.17 GB |" in text
    assert (text.startswith("前\n"), text.endswith("後\n")) == (True, True)
