"""The predicted incompatibilities with PEFT and llama.cpp, compared with what these programs do."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.tiny import save_grafted, save_tiny, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, TsugikiError
from tsugiki.adapters import read_adapter_files
from tsugiki.base import load_meta_model, load_model
from tsugiki.export import Loader, incompatibilities_before_training, loaders
from tsugiki.methods import METHODS
from tsugiki.training import RunConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Settings that a method requires.
_NEEDED: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3},
    "select": {"target_parameters": ["ln_1.weight"]},
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "base", "gpt2")


def incompatibilities(loader: Loader, folder: Path, model: str | None = None) -> list[str]:
    return loaders.incompatibilities(loader, read_adapter_files(folder), model)


def saved(base: str, folder: Path, config: Any) -> Path:
    save_grafted(folder, load_model(base), config)
    return folder


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains_adapter])
def test_predictions_for_peft_match_peft(method: str, base: str, tmp_path: Path):
    config = METHODS[method].configure(_NEEDED.get(method, {}))
    folder = saved(base, tmp_path / "a", config)
    before = incompatibilities_before_training("peft", config, load_meta_model(base))
    assert incompatibilities("peft", folder) == before
    try:
        peft.PeftModel.from_pretrained(load_model(base), folder)
        assert before == []
    except (ValueError, KeyError):
        assert len(before) == 1


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains_adapter])
def test_llama_cpp_supports_only_lora(method: str, base: str, tmp_path: Path):
    config = METHODS[method].configure(_NEEDED.get(method, {}))
    said = incompatibilities("llama.cpp", saved(base, tmp_path / "a", config))
    assert said == incompatibilities_before_training("llama.cpp", config, load_meta_model(base))
    assert bool(said) == (not isinstance(config, LoraConfig) or config.use_dora)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bias": "lora_only"}, "llama.cpp cannot load"),
        ({"lora_bias": True}, "c_attn.lora_B.bias.*llama.cpp cannot load"),
        ({"modules_to_save": ["ln_f"]}, r"\(transformer.ln_f.*llama.cpp"),
        ({"target_modules": ["wpe"]}, r"transformer.wpe.*position_embd"),
        ({"target_modules": ["lm_head"]}, "lm_head, .*shared"),
        # a Conv1D's weight is transposed, and so are its factors
        ({"target_modules": [], "target_parameters": ["attn.c_proj.weight"]}, r"parameters.*attn\.c_proj\.weight"),
    ],
)
def test_predictions_are_the_same_before_and_after_training(
    fields: dict[str, Any], message: str, base: str, tmp_path: Path
):
    config = LoraConfig(r=2, **fields)
    after = incompatibilities("llama.cpp", saved(base, tmp_path / "a", config))
    before = incompatibilities_before_training("llama.cpp", config, load_meta_model(base))
    for problems in (before, after):
        with pytest.raises(TsugikiError, match=message):
            raise TsugikiError("; ".join(problems))


def test_the_frozen_copy_that_peft_saves_with_an_embedding_is_ignored(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(load_model(base), config)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    assert incompatibilities("llama.cpp", tmp_path / "a", base) == []


def test_another_base_is_reported_since_no_loader_checks_it(base: str, tmp_path: Path):
    folder = saved(base, tmp_path / "a", LoraConfig(r=2))
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    for loader in ("llama.cpp", "peft"):
        assert "trained on another base" in incompatibilities(loader, folder, other)[0]
        assert not any("another base" in said for said in incompatibilities(loader, folder, base))


@pytest.mark.parametrize(
    ("loader", "method", "said"),
    [("llama.cpp", "dora", "DoRA"), ("peft", "bitfit", "PEFT has no such method"), ("peft", "full", "every weight")],
)
def test_predictions_for_the_config_of_a_run(loader: Loader, method: str, said: str, base: str):
    run = RunConfig(model=base, data="x.txt", out="out", method=method)
    assert said in incompatibilities_before_training(loader, run.adapter_config, load_meta_model(base))[0]


def test_unknown_architectures():
    said = incompatibilities_before_training("llama.cpp", LoraConfig(), tiny_model("opt"))
    assert "opt" in said[0]
    experts = LoraConfig(target_parameters=["gate_up_proj"])
    assert "qwen3_moe" in incompatibilities_before_training("llama.cpp", experts, tiny_of("qwen3_moe"))[0]


def test_a_base_that_is_not_found(base: str, tmp_path: Path):
    folder = saved(base, tmp_path / "a", LoraConfig(r=2))
    assert "no model at './gone'" in incompatibilities("llama.cpp", folder, "./gone")[0]
