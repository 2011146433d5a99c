"""The chunked loss of a model against its class's own forward: loss, gradients, and other calls."""

import copy
import inspect
import pickle
from itertools import cycle
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.tiny import ids, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, merge, set_adapter, ungraft
from tsugiki.fast import enable_chunked_loss
from tsugiki.fast import loss as loss_module
from tsugiki.model import Undo, undo_all

KINDS = ["gpt2", "llama", "gemma2", "cohere", "phi"]  # tied head, untied, capped, scaled, with a bias
SETUPS: dict[str, Any] = {
    "frozen head": {},
    "grafted head": {"target_modules": ["c_attn", "q_proj", "lm_head"]},
    "head trained whole": {"modules_to_save": ["lm_head"]},
    "every weight": None,
}
IDS = ids(rows=3)
LABELS = IDS.clone()
LABELS[0, 3:7] = LABELS[2, :9] = -100


def trained(kind: str, setup: str = "grafted head") -> Any:
    settings, model = SETUPS[setup], tiny_model(kind)
    return model if settings is None else shake(graft(model, LoraConfig(r=2, **settings)))


def chunked(kind: str, setup: str = "grafted head") -> Any:
    model = trained(kind, setup)
    enable_chunked_loss(model, [])
    return model


def own(model: Any, **given: Any) -> Any:
    return type(model).forward(model, **given)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_learns_the_same(model: Any, **given: Any) -> None:
    given = {"input_ids": IDS, "labels": LABELS, **given}
    wanted = own(model, **given)
    expected = gradients(model, wanted.loss)
    found = model(**given)
    assert found.logits is None
    assert wanted.logits is not None
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-5, atol=1e-6)
    grads = gradients(model, found.loss)
    assert grads.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, grad in grads.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-5 * largest, msg=name)


@pytest.mark.filterwarnings("ignore:lm_head shares its weight")
@pytest.mark.parametrize(("kind", "setup"), zip(KINDS * 3, cycle(SETUPS)))
def test_loss_and_gradients_equal_the_models_own(kind: str, setup: str, monkeypatch: pytest.MonkeyPatch):
    model = chunked(kind, setup)
    monkeypatch.delattr(loss_module, "plain_loss")  # which computes whole logits
    assert_learns_the_same(model)


@pytest.mark.parametrize(
    "given",
    [
        {"num_items_in_batch": 50},
        {"num_items_in_batch": torch.tensor(50)},
        {"shift_labels": IDS.flip(1)},
        {"shift_labels": IDS.flip(1), "num_items_in_batch": 7},
        {"labels": LABELS.masked_fill(LABELS == -100, -1), "ignore_index": -1},
        {"attention_mask": (torch.arange(12) < 8).long().expand(3, 12), "use_cache": True},
        {"position_ids": torch.tensor([[*range(7), *range(5)]] * 3), "use_cache": False},  # two documents in a row
    ],
    ids=lambda given: " ".join(given),
)
def test_arguments_have_the_models_meaning(given: dict[str, Any]):
    assert_learns_the_same(chunked("gpt2"), **given)


def test_ids_by_position_and_outputs_other_than_logits():
    model = chunked("llama")
    found, wanted = model(IDS, labels=LABELS), own(model, input_ids=IDS, labels=LABELS)
    torch.testing.assert_close(found.loss, wanted.loss)
    assert found.keys() == wanted.keys() - {"logits"}
    assert model(IDS, labels=LABELS, use_cache=False).keys() == {"loss"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"logits_to_keep": 2},
        {"output_hidden_states": True},
        {"labels": LABELS, "return_dict": True},
        {"labels": LABELS, "return_dict": False},
    ],
)
def test_other_calls_use_the_models_own_forward(given: dict[str, Any]):
    model = chunked("llama")
    found, wanted = model(input_ids=IDS, **given), own(model, input_ids=IDS, **given)
    assert type(found) is type(wanted)
    assert len(found) == len(wanted)
    at = 1 if "labels" in given else 0
    assert torch.equal(found[at], wanted[at])
    with torch.no_grad():
        assert model(input_ids=IDS, labels=LABELS).logits.shape == (3, 12, 96), "without gradients there are logits"


def test_a_custom_loss_function_is_used():
    model = chunked("llama")
    model.loss_function = lambda logits, labels, **_: logits.sum()
    torch.testing.assert_close(model(input_ids=IDS, labels=LABELS).loss, own(model, input_ids=IDS).logits.sum())
    other = trained("llama")
    other.loss_function = model.loss_function
    enable_chunked_loss(other, [])
    assert "forward" not in vars(other)


def test_the_head_is_looked_up_at_each_call():
    model = tiny_model("llama")
    enable_chunked_loss(model, [])
    assert_learns_the_same(model)
    graft(model, LoraConfig(r=2))
    assert_learns_the_same(shake(model))
    graft(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"]), "head")
    assert_learns_the_same(shake(model))
    set_adapter(model, "default")
    assert_learns_the_same(model)
    with disable_adapter(model):
        torch.testing.assert_close(
            model(input_ids=IDS, labels=LABELS).loss, own(model, input_ids=IDS, labels=LABELS).loss
        )
    set_adapter(model, "head")
    ungraft(merge(model))
    assert_learns_the_same(model)


def test_parameters_config_and_signature_do_not_change():
    model, plain = trained("llama"), trained("llama")
    undo: list[Undo] = []
    enable_chunked_loss(model, undo)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert model.state_dict().keys() == plain.state_dict().keys()
    undo_all(undo)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_its_own_weights(copied: Any):
    model = tiny_model("llama")
    enable_chunked_loss(model, [])
    other = copied(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    assert_learns_the_same(other)
    assert all(p.grad is None for p in model.parameters())
    assert_learns_the_same(model)


def test_accelerate_can_wrap_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # otherwise a process keeps its first precision
    model, plain = trained("llama"), trained("llama")
    enable_chunked_loss(model, [])
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    found, wanted = (accelerator.prepare(each)(input_ids=IDS, labels=LABELS) for each in (model, plain))
    assert found.logits is None
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-2, atol=1e-2)


def test_a_forward_that_the_user_replaced_stays():
    model = tiny_model("llama")
    model.forward = theirs = lambda **given: None
    enable_chunked_loss(model, [])
    assert vars(model)["forward"] is theirs
