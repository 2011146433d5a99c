"""Loss and gradients of a whole model against autograd on the whole logits."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.tiny import shake, store_of, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.data.blocks import pack
from tsugiki.data.collator import Collator
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.fast.paths import use_fast_paths
from tsugiki.labels import IGNORE_INDEX
from tsugiki.lora.dropout import disable_dropout
from tsugiki.train.gradients import Gradients
from tsugiki.train.trainer import token_weighted_loss


def model_of(kind: str = "gpt2") -> Any:
    model = tiny_model(kind)
    disable_dropout(model)
    return model


def batch(model: Any, size: int = 24) -> dict[str, torch.Tensor]:
    """Four rows with several documents each."""
    generator = torch.Generator().manual_seed(5)
    records = [torch.randint(1, 96, (n,), generator=generator).tolist() for n in (9, 30, 5, 14, 20, 7, 11)]
    isolation = detect_document_masking(model)
    blocks = pack(store_of(records), np.arange(7), size, pad=0, share_rows=isolation != "separate_rows")
    return Collator(isolation, model.dtype)([blocks[row] for row in range(4)])


def exact(model: Any) -> Gradients:
    """Groups of one row."""
    return Gradients(model, model, 24, ordered=False)


def replica(model: Any) -> Any:
    short = copy.deepcopy(model).bfloat16()
    use_fast_paths(short)
    return short


def plain_gradients(model: Any, inputs: dict[str, torch.Tensor], count: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """The loss, and the gradient of every parameter that trains, by autograd on the whole logits of the whole batch."""
    model.train()
    out = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
    loss = token_weighted_loss(out, inputs["labels"], count)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.detach(), wanted


def assert_gradients(model: Any, wanted: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "gemma2", "phi", "bloom", "cohere"])
def test_gradients_are_those_of_the_whole_logits(kind: str):
    model = model_of(kind)
    inputs = batch(model)
    count = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
    plain, wanted = plain_gradients(model, inputs, count)
    found = exact(model)
    assert found.head is not None
    for times in (1, 2):  # they are added
        torch.testing.assert_close(found.add(inputs, count), plain)
        assert_gradients(model, {name: times * grad for name, grad in wanted.items()})


@pytest.mark.parametrize(("group", "groups"), [(1, 4), (47, 4), (48, 2), (72, 2), (1000, 1)])
def test_a_group_has_as_many_rows_as_fit(group: int, groups: int):
    model = model_of()
    inputs = batch(model)
    plain, wanted = plain_gradients(model, inputs, 80)
    found = Gradients(model, model, group, ordered=False)
    assert len(found._groups(inputs)) == groups
    torch.testing.assert_close(found.add(inputs, 80), plain)
    assert_gradients(model, wanted)


@pytest.mark.parametrize("head", [[], ["lm_head"]], ids=["", "lm_head"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_gradients_of_an_adapter(kind: str, head: list[str]):
    model = model_of(kind)
    graft(model, LoraConfig(r=3, target_modules=["c_attn" if kind == "gpt2" else "q_proj", *head]))
    shake(model)
    inputs = batch(model)
    plain, wanted = plain_gradients(model, inputs, 80)
    use_fast_paths(model)
    torch.testing.assert_close(exact(model).add(inputs, 80), plain)
    assert len(wanted) == 4 + 2 * len(head)
    assert_gradients(model, wanted)


def test_a_model_whose_head_is_not_known_makes_its_own_logits():
    model = model_of()
    inputs = batch(model)
    plain, wanted = plain_gradients(model, inputs, 80)
    model.lm_head.register_forward_hook(lambda module, given, y: y)
    found = exact(model)
    assert found.head is None
    torch.testing.assert_close(found.add(inputs, 80), plain)
    assert_gradients(model, wanted)


def test_what_has_no_part_in_the_loss_gets_zeros():
    model = model_of()
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3)))
    exact(model).add(batch(model), 80)
    assert not model.idle.grad.any()


def test_bf16_computes_on_a_copy_that_follows_the_weights():
    model = model_of()
    inputs = batch(model)
    whole, short = exact(model), Gradients(model, replica(model), 24, ordered=False)
    for _ in range(2):
        wanted, loss = {}, whole.add(inputs, 80)
        for name, parameter in model.named_parameters():
            wanted[name], parameter.grad = parameter.grad, None
        torch.testing.assert_close(short.add(inputs, 80), loss, rtol=2e-2, atol=0)
        for name, parameter in model.named_parameters():
            assert parameter.dtype == parameter.grad.dtype == torch.float32
            cosine = F.cosine_similarity(parameter.grad.flatten(), wanted[name].flatten(), dim=0)
            assert cosine > 0.98, name
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
            parameter.grad = None


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt"])
def test_the_copy_keeps_documents_apart_as_the_model_does(kind: str):
    model = model_of(kind)
    assert detect_document_masking(replica(model)) == detect_document_masking(model)


def with_threads(count: int, make: Any) -> Any:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        found = make()
        assert torch.get_num_threads() == count
        return found
    finally:
        torch.set_num_threads(before)


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_number_of_threads_changes_no_bit():
    def make() -> list[torch.Tensor]:
        model = model_of()
        loss = exact(model).add(batch(model), 80)
        return [loss, *(p.grad for p in model.parameters())]

    one, two, three = (with_threads(count, make) for count in (1, 2, 3))
    assert equal(one, two)
    assert equal(one, three)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "lm_head"]])
def test_an_adapters_dropout_is_the_same_however_many_threads(targets: list[str]):
    def make(p: float = 0.5) -> list[torch.Tensor]:
        model = model_of()
        graft(model, LoraConfig(r=3, lora_dropout=p, target_modules=targets))
        shake(model)
        inputs = batch(model)
        torch.manual_seed(0)
        loss = exact(model).add(inputs, 80)
        return [loss, *(p.grad for p in model.parameters() if p.requires_grad)]

    one = with_threads(1, make)
    assert not equal(one, make(0.0))
    for _ in range(3):
        assert equal(one, with_threads(2, make))


def test_an_adapters_dropout_differs_from_group_to_group():
    model = model_of("llama")
    graft(model, LoraConfig(r=3, lora_dropout=0.5))
    shake(model)
    row = {name: tensor[:1] for name, tensor in batch(model).items()}
    found = exact(model)
    torch.manual_seed(0)
    first, second = (float(found.add(row, 80)) for _ in range(2))
    assert first != second
    torch.manual_seed(0)
    both = found.add({name: torch.cat([tensor, tensor]) for name, tensor in row.items()}, 80)
    assert float(both) == pytest.approx(first + second)


def test_dropout_inside_the_base_draws_the_same_numbers_however_many_threads():
    def make() -> torch.Tensor:
        model = tiny_model()
        inputs = batch(model)
        torch.manual_seed(0)
        return Gradients(model, model, 24, ordered=True).add(inputs, 80)

    one, two = (with_threads(count, make) for count in (1, 2))
    assert one == two
    model = model_of()
    assert one != exact(model).add(batch(model), 80)
