"""All that can be wrong with an adapter is said, whatever wrote it."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.folders import edit_config as config
from tests.adapters.folders import edit_weights as spoil
from tests.adapters.folders import verify, write
from tests.tiny import save_grafted, save_tiny, shake, tiny_model
from tsugiki import LoraConfig
from tsugiki.adapters import known_base
from tsugiki.base import load_model
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
KEY = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "nan": (lambda f: spoil(f, lambda t: t[KEY].fill_(torch.nan)), "c_attn.lora_A.weight"),
    "half": (lambda f: spoil(f, lambda t: t.pop(KEY)), "h.1.attn.c_attn has no lora_A"),
    "rank": (lambda f: config(f, rank_pattern={"h.1.attn.c_attn": 8}), "rank 4"),
    "8 bits": (
        lambda f: spoil(f, lambda t: t.update({KEY: (t[KEY] * torch.nan).to(torch.float8_e4m3fn)})),
        "c_attn.lora_A.weight",
    ),
    "nothing": (lambda f: spoil(f, lambda t: t.clear()), "no tensor"),
    "method": (lambda f: config(f, peft_type="VBLORA"), "VBLORA"),
    "pattern": (lambda f: config(f, rank_pattern=["a"]), "rank_pattern"),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "beside": (lambda f: (f / "tsugiki.json").write_text("[]"), "tsugiki.json"),
    "record": (lambda f: (f / "run.json").write_text("no"), "run.json"),
    "pointer": (lambda f: (f / "adapter_model.safetensors").write_text("version https://git-lfs"), "Git LFS"),
}


@pytest.mark.parametrize("how", WRONG)
def test_each_fault_is_one_sentence(how: str, tmp_path: Path):
    folder = write(tmp_path / "a")
    assert verify(folder) == []
    WRONG[how][0](folder)
    problems = verify(folder)
    assert len(problems) == 1
    assert WRONG[how][1] in problems[0]
    assert str(tmp_path) not in problems[0]


def test_several_faults_are_all_said(tmp_path: Path):
    folder = write(tmp_path / "a", blocks=9)
    spoil(folder, lambda tensors: [tensor.fill_(torch.inf) for tensor in tensors.values()])
    (folder / "run.json").write_text("no")
    named = [*load_file(folder / "adapter_model.safetensors"), "run.json"]
    problems = verify(folder)
    assert len(problems) == len(named) == 19
    assert all(sum(name in problem for problem in problems) == 1 for name in named)


def test_a_base_that_it_does_not_fit(tmp_path: Path):
    base, wide = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "wide", n_embd=64)
    other, llama = save_tiny(tmp_path / "other", seed=1), save_tiny(tmp_path / "llama", "llama")
    save_grafted(tmp_path / "a", load_model(base), LoraConfig())
    assert verify(tmp_path / "a", known_base(base)) == []
    assert verify(tmp_path / "a", known_base(other)) == [
        f"it was trained on another base ({base}): their weights differ"
    ]
    assert "lora_A.weight is [8, 32], expected [8, 64]" in "".join(verify(tmp_path / "a", known_base(wide)))
    assert "it does not fit the base: target_modules" in "".join(verify(tmp_path / "a", known_base(llama)))


@pytest.mark.parametrize("method", ["lora", "ia3", "p-tuning", "houlsby", "norms", "bitfit"])
def test_every_method_fits_its_base(method: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    save_grafted(tmp_path / "a", load_model(base), METHODS[method].configure({}))
    assert verify(tmp_path / "a", known_base(base)) == []
    spoil(tmp_path / "a", lambda tensors: tensors.update(more=torch.ones(2)))
    assert any("more is not part of the adapter" in problem for problem in verify(tmp_path / "a", known_base(base)))


def test_pefts_folder_with_a_grafted_embedding_fits(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    settings = peft.LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    theirs = shake(peft.get_peft_model(tiny_model("llama", vocab_size=257), settings))
    theirs.save_pretrained(tmp_path / "a")
    assert any("base_layer" in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert verify(tmp_path / "a", known_base(base)) == []
