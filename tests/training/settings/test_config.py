"""Settings of a run: from YAML and flags, defaults of methods, and values that are refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.errors import refused
from tsugiki.training import CHAPTER, load_config

PATHS = {"model": "m", "data": "d", "out": "o"}


def test_learning_rate_and_batch_size_are_auto_or_numbers():
    def chosen(**given: Any) -> tuple[Any, Any]:
        config = load_config(None, {**PATHS, **given})
        return config.batch_size, config.learning_rate

    assert (chosen(), chosen(batch_size=4, learning_rate=1e-3)) == (("auto", "auto"), (4, 1e-3))
    assert chosen(learning_rate="1e-3")[1] == 1e-3  # YAML takes a number without a dot for text
    for setting in ("learning_rate", "batch_size"):
        with refused(f"settings: {setting}: input should be a valid .*'fast'") as error:
            chosen(**{setting: "fast"})
        assert "literal" not in str(error.value)


def test_the_settings_of_the_chapter():
    config = load_config(None, {**PATHS, **CHAPTER})
    assert (config.epochs, config.batch_size, config.learning_rate) == (3, 16, 1e-4)
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (8, 32, 0.1)


def test_a_preset_has_other_defaults_which_settings_override(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nout: o\nlora: {r: 4}\nbatch_size: 2\n")
    config = load_config(path, {"learning_rate": 0.5}, preset=CHAPTER)
    assert (config.batch_size, config.learning_rate, config.validation) == (2, 0.5, "none")
    assert (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (4, 32, 0.1)
    other = load_config(None, {**PATHS, "method": "ia3"}, preset=CHAPTER)
    assert other.adapter_config is not None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "full", "lora": {"r": 4}}, "lora: .*full"),
        ({"method": "full", "base_dtype": "fp32"}, "base_dtype: .*full"),
        ({"compute_dtype": "bf16"}, "compute_dtype: .*lora"),
        ({"minutes": 5, "epochs": 2}, "minutes cannot be combined with epochs"),
        ({"validation": "none", "keep": "best"}, "keep best needs a validation text"),
        ({"method": "full", "decay_ratio": 0.1}, "lr_scheduler_type.*warmup_stable_decay"),
        ({"base_dtype": "stored"}, "base_dtype: .*'nf4'.*got 'stored'"),
        ({"learning_rate": -1.0}, "learning_rate: .*greater than 0"),
        ({"learning_rate": math.inf}, "learning_rate: .*finite"),
        ({"lora": {"r": 0}}, "r: "),
        ({"lora": {"rank": 4}}, "rank: unknown setting; did you mean 'r'"),
        ({"method": "dora", "lora": {"use_dora": False}}, "use_dora is True"),
        ({"lora": {"freeze_B": True}}, "freeze_A"),
        ({"banana": 1}, "banana: unknown setting$"),
        ({"learning_rat": 1, "epoch": 3}, r"learning_rat: .*'learning_rate'\? epoch: .*'epochs'\?$"),
        ({"batch_size": "many"}, "batch_size"),
        ({"method": "prompt-tuning", "recompute": "blocks"}, "recompute"),
        ({"softmax": "sampled", "preference": "dpo"}, "preference cannot be combined with softmax"),
        ({"add_tokens": "w", "method": "ia3"}, "add_tokens: no setting of method ia3"),
        ({"add_tokens": "w", "base_dtype": "int8"}, "int8"),
        ({"add_tokens": "w", "lora": {"trainable_token_indices": [3]}}, "leave one of the two out"),
        ({"method": "lora", "loraplus_lr_ratio": 4}, "loraplus_lr_ratio: .*lora"),
        ({"method": "lora+", "loraplus_lr_ratio": 0}, "loraplus_lr_ratio: .*greater than 0"),
        ({"method": "lorafa"}, "lora-fa"),
        ({"method": "orthogonal", "lora": {"r": 3}}, "even.* 3"),
        ({"method": "pissa", "lora": {"init_lora_weights": "gaussian"}}, "init_lora_weights is 'pissa'"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str):
    with refused(said):
        load_config(None, {**PATHS, **fields})


def test_yaml_and_flags(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nout: o\nlora: {r: 4}\nepochs: 2\n")
    config = load_config(path, {"epochs": 5, "lora": {"lora_alpha": 16}})
    assert (config.epochs, config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (5, 4, 16, 0)
    for content, said in (
        ("[1]", "holds no settings"),
        ("model：m\nout：o", "full-width colon"),
        ("a: [", "is not YAML"),
        ("lora: 5", "lora is 5"),
        ("model: m", "data: field required"),
    ):
        path.write_text(content)
        with refused(said):
            load_config(path, {})


def test_a_file_of_another_program_is_answered_with_the_names_here(tmp_path: Path):
    path = tmp_path / "axolotl.yaml"
    path.write_text("base_model: a/b\ndatasets: []\noutput_dir: out\nlora_r: 8\nlora_alpha: 16\nmicro_batch_size: 2\n")
    pairs = "base_model → model, datasets → data, output_dir → out, lora_r → lora.r, lora_alpha → lora.lora_alpha;"
    with refused(pairs):
        load_config(path, {})
