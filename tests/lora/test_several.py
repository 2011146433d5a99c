"""Several LoRA adapters that are active together, beside PEFT's."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.errors import refused
from tests.tiny import ids, logits, relative_error, shake, tiny_model
from tsugiki import (
    LoraConfig,
    TsugikiError,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lora import active_names, remove_adapter
from tsugiki.methods import IA3Config

CONFIGS = {
    "one": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"]},
    "two": {"r": 2, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def with_both(folder: Path) -> Any:
    """A model with two adapters, which are saved in `folder`."""
    model = tiny_model("llama")
    for seed, (name, fields) in enumerate(CONFIGS.items()):
        graft(model, LoraConfig(**fields), name)
        shake(model, seed)
        save_adapter(model, folder / name)
    return model


def test_the_sum_and_its_gradients_are_pefts(tmp_path: Path):
    model = with_both(tmp_path)
    base = logits(tiny_model("llama"))
    alone = logits(model)
    set_adapter(model, ["one", "two"])
    assert active_names(model) == ["one", "two"]
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "one", "one", is_trainable=True)
    theirs.load_adapter(tmp_path / "two", "two", is_trainable=True)
    theirs.base_model.set_adapter(["one", "two"])
    assert relative_error(logits(model), logits(theirs)) < 1e-5
    for one in (model, theirs):
        one(input_ids=ids(), labels=ids()).loss.backward()
    assert len(trainable_parameters(model)) == 2 * 2 * 4
    for name in CONFIGS:
        for path, pair in model._tsugiki.adapters[name].pairs.items():
            layer = theirs.base_model.model.get_submodule(path)
            for mine, of_peft in ((pair.A, layer.lora_A), (pair.B, layer.lora_B)):
                assert relative_error(mine.grad, of_peft[name].weight.grad) < 1e-4
    both = logits(model)
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), both)
    assert relative_error(logits(merge(model)), both) < 1e-5
    assert torch.equal(logits(unmerge(model)), both)
    set_adapter(model, "two")
    assert torch.equal(logits(model), alone)
    set_adapter(model, ["two", "one"])
    remove_adapter(model, "one")
    assert active_names(model) == []
    set_adapter(model, "two")
    assert torch.equal(logits(model), alone)
    ungraft(model)
    assert torch.equal(logits(model), base)


def test_what_cannot_be_added_is_refused_and_changes_nothing(tmp_path: Path):
    model = with_both(tmp_path)
    others: dict[str, Any] = {"dora": {"use_dora": True}, "dropped": {"lora_dropout": 0.1}}
    others |= {name: {"modules_to_save": ["norm"]} for name in ("norm", "norm again")}
    graft(model, IA3Config(), "scaled")
    for name, settings in others.items():
        graft(model, LoraConfig(target_modules=["q_proj"], **settings), name)
    before = logits(model)
    for names, said in (
        (["one", "scaled"], "'scaled' is not a LoRA adapter"),
        (["one", "dora"], "DoRA"),
        (["one", "dropped"], "different dropout"),
        (["norm", "norm again"], "replace model.norm"),
        (["one", "three"], "no adapter is called 'three'"),
        ([], "no name"),
    ):
        with refused(said):
            set_adapter(model, names)
        assert torch.equal(logits(model), before)
    set_adapter(model, ["one", "norm"])
    save_adapter(model, tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["norm", "one"], "as PEFT saves them"
    save_adapter(model, tmp_path / "again", "one")
    with pytest.raises(TsugikiError):
        load_adapter(model, tmp_path / "nowhere", "new")
    assert active_names(model) == ["one", "norm"]
