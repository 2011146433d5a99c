import copy
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.errors import assert_refused, refused
from tests.hub_server import HubServer
from tests.lora.test_graft_undo import CONFIGS
from tests.tiny import grafted, logits, relative_error, save_tiny, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    print_trainable_parameters,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lora import active_adapter, is_grafted

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FILES = {"adapter_config.json", "adapter_model.safetensors", "tsugiki.json"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def same_files(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("method", CONFIGS)
def test_every_method_is_saved_and_loaded_as_trainer_does(method: str, tmp_path: Path):
    model = grafted(tiny_model(), CONFIGS[method]())
    checkpoint = tmp_path / "checkpoint-7"
    model.save_pretrained(str(checkpoint), state_dict=None, is_main_process=True)
    save_adapter(model, tmp_path / "adapter")
    assert same_files(checkpoint, tmp_path / "adapter")
    assert names(checkpoint) == FILES | {"model.safetensors"}

    torch.manual_seed(9)
    resumed = graft(tiny_model(), CONFIGS[method]())
    assert not torch.equal(logits(shake(resumed, seed=8)), logits(model))
    result = resumed.load_state_dict(load_file(checkpoint / "model.safetensors"), False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(map(torch.equal, resumed.state_dict().values(), model.state_dict().values()))
    assert torch.equal(logits(resumed), logits(model))


def test_only_a_checkpoint_has_the_second_name(tmp_path: Path):
    model = grafted(tiny_model(), LoraConfig())
    for name in ("adapter", "checkpoint-best", "my-checkpoint-1"):
        model.save_pretrained(tmp_path / name)
        assert names(tmp_path / name) == FILES
    for seed in (1, 2):  # the second time, there is a file already
        shake(model, seed).save_pretrained(tmp_path / "checkpoint-1")
        assert os.path.samefile(*(tmp_path / "checkpoint-1" / f"{n}.safetensors" for n in ("model", "adapter_model")))
        assert (tmp_path / "checkpoint-1/model.safetensors").is_symlink()


def test_transformers_and_peft_load_a_checkpoint_as_an_adapter(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    from transformers import AutoModelForCausalLM

    model = grafted(AutoModelForCausalLM.from_pretrained(base), LoraConfig())
    model.save_pretrained(tmp_path / "checkpoint-1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "checkpoint-1")
    assert relative_error(logits(loaded), logits(model)) < 1e-5
    assert relative_error(logits(theirs), logits(model)) < 1e-5


def test_a_merged_model_still_saves_its_adapter(tmp_path: Path):
    model = grafted(tiny_model("llama"), LoraConfig())
    save_adapter(model, tmp_path / "before")
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    assert same_files(tmp_path / "merged", tmp_path / "before")
    with refused("unmerge"):
        model.load_state_dict(load_file(tmp_path / "merged/adapter_model.safetensors"), strict=False)
    unmerge(model)
    model.load_state_dict(load_file(tmp_path / "merged/adapter_model.safetensors"), strict=False)
    ungraft(merge(model)).save_pretrained(tmp_path / "whole")
    assert "model.safetensors" in names(tmp_path / "whole")
    assert "adapter_config.json" not in names(tmp_path / "whole")


def test_a_copy_of_the_model_saves_its_own_adapter(tmp_path: Path):
    model = grafted(tiny_model(), LoraConfig())
    twin = shake(copy.deepcopy(model), seed=5)
    twin.save_pretrained(tmp_path / "twin")
    save_adapter(twin, tmp_path / "expected")
    assert same_files(tmp_path / "twin", tmp_path / "expected")
    before = logits(model)
    twin.load_state_dict(load_file(tmp_path / "twin/adapter_model.safetensors"), strict=False)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("given", [{"is_main_process": False}, {"state_dict": {}}], ids=str)
def test_processes_other_than_the_main_one_write_nothing(given: dict[str, Any], tmp_path: Path):
    grafted(tiny_model(), LoraConfig()).save_pretrained(tmp_path / "checkpoint-1", **given)
    assert not (tmp_path / "checkpoint-1").exists()


def test_the_state_of_a_compiled_model_is_saved_as_an_adapter_only(tmp_path: Path):
    """From a `model.safetensors` beside it, Trainer would load no tensor into the compiled model, and only warn."""
    model = grafted(tiny_model(), LoraConfig())
    state = torch.compile(model, backend="eager").state_dict()
    model.save_pretrained(tmp_path / "checkpoint-1", state_dict=state)
    assert names(tmp_path / "checkpoint-1") == FILES


@pytest.mark.parametrize(
    ("method", "prefix"),
    [
        *((method, "") for method in ("dora", "prefix-tuning", "houlsby", "lora with biases and a module")),
        ("lora", "module."),
        ("lora", "_orig_mod.module."),
    ],
)
def test_the_values_of_a_state_dict_are_written(method: str, prefix: str, tmp_path: Path):
    model = grafted(tiny_model(), CONFIGS[method]())
    other = shake(copy.deepcopy(model), seed=7)
    save_adapter(model, tmp_path / "before")
    state = {f"{prefix}{name}": tensor for name, tensor in other.state_dict().items()}
    model.save_pretrained(tmp_path / "adapter", state_dict=state)
    save_adapter(other, tmp_path / "expected")
    assert same_files(tmp_path / "adapter", tmp_path / "expected")
    assert not same_files(tmp_path / "adapter", tmp_path / "before")
    save_adapter(model, tmp_path / "after")
    assert same_files(tmp_path / "after", tmp_path / "before")


@pytest.mark.parametrize(
    "setting",
    [{"push_to_hub": True}, {"safe_serialization": False}, {"variant": "fp16"}, {"selected_adapters": ["default"]}],
)
def test_what_an_adapter_cannot_be_is_refused(setting: dict[str, Any], tmp_path: Path):
    model = grafted(tiny_model(), LoraConfig())
    assert_refused(next(iter(setting)), model.save_pretrained, tmp_path / "adapter", **setting)
    assert not (tmp_path / "adapter").exists()
    model.save_pretrained(tmp_path / "adapter", max_shard_size="5GB", safe_serialization=True, push_to_hub=False)


def test_an_adapter_of_another_shape_is_refused_and_nothing_changes(tmp_path: Path):
    grafted(tiny_model(), LoraConfig(r=2)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    model = grafted(tiny_model(), LoraConfig(r=4))
    before = logits(model)
    with refused(r"state dict does not fit.*is \[2, 32\], expected \[4, 32\]"):
        model.load_state_dict(tensors, strict=False)
    assert torch.equal(logits(model), before)
    state, name = model.state_dict(), next(iter(trainable_parameters(model)))
    del state[name]
    assert_refused(name, model.save_pretrained, tmp_path / "adapter", state_dict=state)


def test_push_to_hub_of_a_grafted_model_sends_the_adapter(hub: HubServer):
    model = grafted(tiny_model(), LoraConfig())
    model.push_to_hub("someone/adapter")
    assert set(hub.repositories["someone/adapter"].files) >= FILES
    assert "model.safetensors" not in hub.repositories["someone/adapter"].files


def two_active(seed: int) -> Any:
    """A model whose adapters "default" and "two" are both active."""
    model = grafted(tiny_model(), LoraConfig(r=2), seed)
    torch.manual_seed(seed)
    graft(model, LoraConfig(r=3, target_modules=["c_attn"]), "two")
    set_adapter(model, ["default", "two"])
    return shake(model, seed)


def test_several_active_adapters_are_saved_in_pefts_folders(tmp_path: Path):
    model = two_active(3)
    for write in (lambda folder: model.save_pretrained(folder), lambda folder: save_adapter(model, folder)):
        write(tmp_path)
        assert names(tmp_path) == FILES | {"two"}
        assert names(tmp_path / "two") == FILES
        loaded = load_adapter(load_adapter(tiny_model(), tmp_path), tmp_path / "two", "two")
        set_adapter(loaded, ["default", "two"])
        assert torch.equal(logits(loaded), logits(model))
        for path in (tmp_path / "two", tmp_path):
            theirs = peft.PeftModel.from_pretrained(tiny_model(), path)
            set_adapter(loaded, "two" if path.name == "two" else "default")
            assert relative_error(logits(theirs), logits(loaded)) < 1e-5
    graft(model, LoraConfig(r=2), "three")
    set_adapter(model, ["two", "three"])
    save_adapter(model, tmp_path / "none is the default")
    assert names(tmp_path / "none is the default") == {"two", "three"}
    set_adapter(model, "two")
    save_adapter(model, tmp_path / "one")
    assert active_adapter(load_adapter(tiny_model(), tmp_path / "one")).config.r == 3
    with disable_adapter(model), refused("no adapter is active"):
        model.save_pretrained(tmp_path / "none")


def test_a_checkpoint_of_several_adapters_is_loaded_into_the_same_ones(tmp_path: Path):
    model, other = two_active(3), two_active(4)
    state = model.state_dict()
    shake(model, seed=9).save_pretrained(tmp_path / "checkpoint-1", state_dict=state)
    tensors = load_file(tmp_path / "checkpoint-1/model.safetensors")
    result = other.load_state_dict(tensors, False)
    assert not result.missing_keys
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())
    set_adapter(other, "two")
    assert_refused("default, two.*two are active", other.load_state_dict, tensors, False)


def test_a_grafted_model_has_two_methods_of_pefts(capsys: pytest.CaptureFixture[str]):
    model = grafted(tiny_model("llama"), LoraConfig())
    print_trainable_parameters(model)
    model.print_trainable_parameters()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[1] != ""
    wanted = logits(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert plain is model
    assert not is_grafted(plain)
    assert relative_error(logits(plain), wanted) < 1e-5
    assert not hasattr(plain, "merge_and_unload")
