import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from tests.devices.pretend import NAME, on_host, pretended_device
from tests.tiny import ids, tiny_model
from tsugiki.model import NoRandomValues, meta_model, replica_in


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "bloom"])
def test_a_replica_computes_as_the_model_loaded_in_bfloat16(kind: str, tmp_path: Path):
    """The oracle is transformers' own loading; the positions are those where rounded frequencies are far off."""
    place = {"gpt2": "n_positions", "bloom": "seq_length"}.get(kind, "max_position_embeddings")
    model = tiny_model(kind, **{place: 2048})
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    replica = replica_in(torch.bfloat16, model)
    positions = {} if kind == "bloom" else {"position_ids": torch.arange(2000, 2012)[None]}
    with torch.no_grad():
        found, expected = (each(ids(rows=1), **positions).logits for each in (replica, loaded))
    assert torch.equal(found, expected)
    assert all(p.dtype == torch.bfloat16 for p in replica.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def replica_by_data(dtype: torch.dtype, model: Any) -> Any:
    """The definition: a whole copy whose parameters then get other data."""
    replica = copy.deepcopy(model)
    for parameter in replica.parameters():
        parameter.data = parameter.data.to(dtype)
    return replica


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # with tied weights, and without
def test_a_replica_has_parameters_of_its_own(kind: str, dtype: torch.dtype):
    model = tiny_model(kind)
    model.get_input_embeddings().weight.requires_grad_(False)
    replica, expected = replica_in(dtype, model), replica_by_data(dtype, model)
    found, wanted = dict(replica.named_parameters()), dict(expected.named_parameters())
    assert list(found) == list(wanted)
    assert [*replica.state_dict()] == [*expected.state_dict()]
    for name, parameter in found.items():
        assert type(parameter) is type(wanted[name])
        assert parameter.requires_grad == wanted[name].requires_grad
        torch.testing.assert_close(parameter, wanted[name], rtol=0, atol=0)
    storages = [{p.data_ptr() for p in each.parameters()} for each in (model, replica)]
    assert not storages[0] & storages[1]
    tied = [each.lm_head.weight is each.get_input_embeddings().weight for each in (replica, expected)]
    assert tied == [kind == "gpt2"] * 2


def test_a_replica_is_made_on_a_device_whose_tensors_are_wrappers():
    with pretended_device():
        replica = replica_in(torch.bfloat16, tiny_model().to(NAME))
        assert {on_host(parameter.detach()).dtype for parameter in replica.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "gptj", "gemma4_text"])
def test_a_model_on_the_meta_device_has_the_shapes_of_one_in_memory(kind: str):
    """That of Gemma 4 mixes numbers of rotary embeddings with tensors on the meta device."""
    config = transformers.AutoConfig.for_model(kind, num_hidden_layers=2)
    with torch.device("meta"):
        expected = transformers.AutoModelForCausalLM.from_config(config)

    def shapes(of: torch.nn.Module) -> dict[str, Any]:
        tensors = [*of.named_parameters(), *of.named_buffers()]
        return {name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in tensors}

    assert shapes(meta_model(config)) == shapes(expected)
    assert {device for _, _, device in shapes(meta_model(config)).values()} == {"meta"}


class Drawing(TorchDispatchMode):
    """Counts the operations that draw numbers."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(word in str(func) for word in ("normal", "uniform"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_without_values_draws_none_and_one_in_memory_does(kind: str):
    def built() -> Any:
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config)

    config = tiny_model(kind).config
    with Drawing() as drawing, torch.device("meta"):
        built()
    assert drawing.count > 0
    with Drawing() as drawing:
        meta_model(config)
    assert drawing.count == 0
    expected = built().state_dict()
    with NoRandomValues():
        found = built().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
