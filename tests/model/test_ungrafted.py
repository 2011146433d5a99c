"""Models in wrappers: names in files are those of the inner model, and what cannot work is refused with one line."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import AutoModelForCausalLM

from tests.errors import refused
from tests.tiny import grafted, ids, logits, relative_error, save_grafted, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    mixed_batch,
    remove_adapter,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lora import is_grafted


class ValueHead(nn.Module):
    """A language model with a value for each token, as in TRL's examples of reinforcement learning."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.pretrained_model = model
        self.v_head = nn.Linear(32, 1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        found = self.pretrained_model(input_ids=tokens, output_hidden_states=True)
        return found.logits, self.v_head(found.hidden_states[-1])


@pytest.fixture
def group(tmp_path: Path):
    """A process group of this process alone, as DistributedDataParallel needs."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_peft(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["down_proj"]))


WRAPPERS = {
    "compiled": compiled,
    "data-parallel": DataParallel,
    "distributed": DistributedDataParallel,
    "compiled distributed": lambda model: compiled(DistributedDataParallel(model)),
    "value head": ValueHead,
    "PEFT": in_peft,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.usefixtures("group")
def test_the_adapter_of_a_wrapped_model_is_saved_under_the_inner_names(wrapper: str, tmp_path: Path):
    model = grafted(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    save_adapter(model, tmp_path / "plain")
    wrapped = WRAPPERS[wrapper](model)
    assert is_grafted(wrapped)
    save_adapter(wrapped, tmp_path / "wrapped")
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("plain", "wrapped"))
    assert one == other


@pytest.mark.parametrize(
    ("wrapper", "advice"),
    [
        ("data-parallel", "DataParallel.*model.module"),
        ("compiled distributed", "DistributedDataParallel.*model.module"),
        ("value head", "ValueHead.*model.pretrained_model"),
        ("PEFT", "PeftModel.*unload"),
    ],
)
@pytest.mark.usefixtures("group")
def test_a_wrapper_is_refused_with_what_to_graft_instead(wrapper: str, advice: str, tmp_path: Path):
    grafted(tiny_model("llama"), LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    wrapped = WRAPPERS[wrapper](tiny_model("llama"))
    trained = set(trainable_parameters(wrapped))
    with refused(advice):
        graft(wrapped, LoraConfig())
    with refused(advice):
        load_adapter(wrapped, tmp_path / "adapter")
    assert set(trainable_parameters(wrapped)) == trained
    assert not is_grafted(wrapped)
    if wrapper == "value head":  # which trains beside the adapter inside
        graft(wrapped.pretrained_model, LoraConfig(r=2))
        names = set(trainable_parameters(wrapped))
        assert {name for name in names if ".lora." not in name} == {"v_head.weight", "v_head.bias"} < names


@pytest.mark.parametrize("targets", [None, "all-linear", ["k_proj"]])
@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter", "inject_adapter_in_model"])
def test_a_model_into_which_peft_has_put_an_adapter_is_refused(way: str, targets: Any, tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    save_grafted(tmp_path / "adapter", base, LoraConfig(r=2, target_modules=["q_proj"]))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / ("adapter" if way == "from_pretrained" else "base"))
    if way == "load_adapter":
        model.load_adapter(str(tmp_path / "adapter"))
    if way == "inject_adapter_in_model":
        model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    assert type(model).__name__ == "LlamaForCausalLM"
    with refused(r"an adapter of PEFT \(in model.layers.0.self_attn.q_proj\).*load_adapter"):
        graft(model, LoraConfig(target_modules=targets))
    with refused("an adapter of PEFT"):
        load_adapter(model, tmp_path / "adapter")
    assert not is_grafted(model)


def test_the_whole_life_of_an_adapter_through_a_compiled_model(tmp_path: Path):
    model = tiny_model("llama", num_hidden_layers=1)
    wrapped = compiled(model)
    base = logits(wrapped)
    torch.manual_seed(0)
    graft(wrapped, LoraConfig(r=2))
    adapted = logits(shake(wrapped))
    assert relative_error(adapted, base) > 1e-3
    wrapped(input_ids=ids(), labels=ids()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in trainable_parameters(wrapped).values())
    save_adapter(wrapped, tmp_path)

    # The functions change the inner model, which is run here without compiling it for every change.
    assert torch.equal(logits(model), adapted)
    load_adapter(wrapped, tmp_path, "second")
    with disable_adapter(wrapped):
        assert torch.equal(logits(model), base)
    with mixed_batch(wrapped, ["second", None]), torch.no_grad():
        mixed = model(input_ids=ids()).logits
    assert relative_error(mixed, torch.stack([adapted[0], base[1]])) < 1e-5
    set_adapter(wrapped, "default")
    remove_adapter(wrapped, "second")
    merge(wrapped)
    assert relative_error(logits(model), adapted) < 1e-5
    unmerge(wrapped)
    assert torch.equal(logits(model), adapted)
    assert ungraft(wrapped) is model
    assert torch.equal(logits(wrapped), base)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama", num_hidden_layers=1), tmp_path)
    assert relative_error(logits(theirs), adapted) < 1e-5


def test_what_peft_returns_without_its_adapter_can_be_grafted(tmp_path: Path):
    theirs = in_peft(tiny_model("llama"))
    for plain in (theirs.unload(), in_peft(tiny_model("llama")).merge_and_unload()):
        graft(plain, LoraConfig(r=2))
        save_adapter(shake(plain), tmp_path)
        loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path)
        assert relative_error(logits(loaded), logits(plain)) < 1e-5
