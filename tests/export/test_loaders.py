"""What PEFT and llama.cpp are said to refuse is what they refuse."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.tiny import save_tiny, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, save_adapter
from tsugiki.base.loading import load_meta_model, load_model
from tsugiki.export.loaders import refusals, refusals_before_training
from tsugiki.methods.table import METHODS
from tsugiki.train.config import RunConfig
from tsugiki.train.verify_loaders import refusals_of_run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# What a method asks for besides.
_NEEDED: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3},
    "select": {"target_parameters": ["ln_1.weight"]},
}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "base", "gpt2")


def saved(base: str, folder: Path, config: Any) -> Path:
    model = load_model(base)
    graft(model, config)
    shake(model)
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains_adapter])
def test_each_method_as_peft_has_it(method: str, base: str, tmp_path: Path):
    config = METHODS[method].configure(_NEEDED.get(method, {}))
    folder = saved(base, tmp_path / "a", config)
    before = refusals_before_training("peft", config, load_meta_model(base))
    assert refusals("peft", folder) == before
    try:
        peft.PeftModel.from_pretrained(load_model(base), folder)
        assert before == []
    except (ValueError, KeyError):
        assert len(before) == 1


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.trains_adapter])
def test_llama_cpp_has_lora_alone(method: str, base: str, tmp_path: Path):
    config = METHODS[method].configure(_NEEDED.get(method, {}))
    said = refusals("llama.cpp", saved(base, tmp_path / "a", config))
    assert said == refusals_before_training("llama.cpp", config, load_meta_model(base))
    assert bool(said) == (not isinstance(config, LoraConfig) or config.use_dora)
    assert refusals("ollama", tmp_path / "a") == [*said, *refusals("ollama", tmp_path / "a")[-1:]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bias": "lora_only"}, "trains whole what llama.cpp takes pairs of alone"),
        ({"modules_to_save": ["ln_f"]}, r"pairs of alone \(transformer.ln_f"),
        ({"target_modules": ["wpe"]}, r"transformer.wpe, whose adapter llama.cpp passes over"),
        ({"target_modules": ["lm_head"]}, "lm_head, which is one tensor with"),
    ],
)
def test_before_training_and_after(fields: dict[str, Any], said: str, base: str, tmp_path: Path):
    config = LoraConfig(r=2, **fields)
    after = refusals("llama.cpp", saved(base, tmp_path / "a", config))
    before = refusals_before_training("llama.cpp", config, load_meta_model(base))
    for problems in (before, after):
        with pytest.raises(TsugikiError, match=said):
            raise TsugikiError("; ".join(problems))


def test_what_peft_writes_beside_an_embedding_is_no_part_of_the_adapter(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(load_model(base), config)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    assert refusals("llama.cpp", tmp_path / "a", base) == []


def test_another_base_is_seen_by_none_of_them(base: str, tmp_path: Path):
    folder = saved(base, tmp_path / "a", LoraConfig(r=2))
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    for loader in ("llama.cpp", "ollama", "peft"):
        assert "trained on another base" in refusals(loader, folder, other)[0]
        assert not any("another base" in said for said in refusals(loader, folder, base))


def test_a_run_before_it_begins(base: str):
    common = {"model": base, "data": "x.txt", "out": "out"}
    assert refusals_of_run("llama.cpp", RunConfig(**common)) == []
    assert "DoRA" in refusals_of_run("llama.cpp", RunConfig(**common, method="dora"))[0]
    assert "PEFT has no such method" in refusals_of_run("peft", RunConfig(**common, method="bitfit"))[0]
    assert "every weight" in refusals_of_run("peft", RunConfig(**common, method="full"))[0]


def test_unknown_names(base: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match=r"no loader 'tgi' is known here; there are llama.cpp, ollama, peft"):
        refusals("tgi", tmp_path)
    said = refusals_before_training("llama.cpp", LoraConfig(), tiny_model("opt"))
    assert said[0].startswith("opt is not among the architectures")


def test_a_base_that_is_not_here(base: str, tmp_path: Path):
    folder = saved(base, tmp_path / "a", LoraConfig(r=2))
    assert "no model at './gone'" in refusals("llama.cpp", folder, "./gone")[0]
