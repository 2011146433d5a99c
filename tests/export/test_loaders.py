"""Why llama.cpp would not compute an adapter as Tsugiki does."""

from pathlib import Path
from typing import Any

import peft
import pytest

from tests.errors import refused
from tests.tiny import save_grafted, save_tiny, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, TsugikiError
from tsugiki.adapters import read_lora_weights
from tsugiki.base import load_meta_model, load_model
from tsugiki.export import llama_cpp_incompatibilities

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def incompatibilities(base: str, folder: Path) -> list[str]:
    return llama_cpp_incompatibilities(read_lora_weights(folder), load_meta_model(base))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, ""),
        ({"use_dora": True}, "magnitudes of DoRA"),
        ({"bias": "lora_only"}, "llama.cpp cannot load"),
        ({"modules_to_save": ["ln_f"]}, r"\(transformer.ln_f.*llama.cpp"),
        ({"target_modules": ["wpe"]}, r"transformer.wpe.*position_embd"),
        ({"target_modules": ["lm_head"]}, "lm_head, .*shared"),
        # a Conv1D's weight is transposed, and so are its factors
        ({"target_modules": [], "target_parameters": ["attn.c_proj.weight"]}, r"parameters.*attn\.c_proj\.weight"),
    ],
)
def test_the_reasons(fields: dict[str, Any], message: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base", "gpt2")
    save_grafted(tmp_path / "a", load_model(base), LoraConfig(r=2, **fields))
    said = incompatibilities(base, tmp_path / "a")
    assert bool(said) == bool(message)
    if message:
        with refused(message):
            raise TsugikiError("; ".join(said))


def test_the_frozen_copy_that_peft_saves_with_an_embedding_is_ignored(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(load_model(base), config)
    theirs.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    assert incompatibilities(base, tmp_path / "a") == []


@pytest.mark.parametrize("kind", ["opt", "qwen3_moe"])
def test_unknown_architectures(kind: str, tmp_path: Path):
    base = tiny_model("opt") if kind == "opt" else tiny_of(kind)
    base.save_pretrained(tmp_path / "base")
    save_grafted(tmp_path / "a", base, LoraConfig(r=2, target_modules=["q_proj"]))
    with refused(kind):
        incompatibilities(str(tmp_path / "base"), tmp_path / "a")
