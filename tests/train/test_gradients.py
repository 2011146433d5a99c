"""Loss and gradients of a whole model against autograd on the whole logits."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.tiny import store_of, tiny_model
from tsugiki.data.blocks import IGNORED, pack
from tsugiki.fast.loss import find_head
from tsugiki.fast.paths import use_fast_paths
from tsugiki.lora.dropout import silence_dropout
from tsugiki.train.gradients import Gradients
from tsugiki.train.isolation import Collator, find_isolation
from tsugiki.train.trainer import token_weighted_loss


def model_of(kind: str = "gpt2") -> Any:
    model = tiny_model(kind)
    silence_dropout(model)
    return model


def batch(model: Any, size: int = 24) -> dict[str, torch.Tensor]:
    """Four rows with several documents each."""
    generator = torch.Generator().manual_seed(5)
    records = [torch.randint(1, 96, (n,), generator=generator).tolist() for n in (9, 30, 5, 14, 20, 7, 11)]
    isolation = find_isolation(model)
    blocks = pack(store_of(records), np.arange(7), size, pad=0, share_rows=isolation != "rows")
    return Collator(isolation, model.dtype)([blocks[row] for row in range(4)])


def exact(model: Any) -> Gradients:
    """Groups of one row."""
    return Gradients(model, model, 24, ordered=False)


def replica(model: Any) -> Any:
    short = copy.deepcopy(model).bfloat16()
    use_fast_paths(short)
    return short


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "gemma2", "phi", "bloom", "cohere"])
def test_gradients_are_those_of_the_whole_logits(kind: str):
    model = model_of(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert find_head(model) is not None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    inputs = batch(model)
    count = (inputs["labels"][:, 1:] != IGNORED).sum()
    model.train()
    plain = token_weighted_loss(
        model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False), inputs["labels"], count
    )
    plain.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = exact(model)
    for times in (1, 2):  # they are added
        loss = found.add(inputs, count)
        torch.testing.assert_close(loss, plain.detach())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, times * wanted[name], rtol=1e-3, atol=1e-6, msg=name)


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
    assert find_isolation(replica(model)) == find_isolation(model)


def test_the_number_of_threads_changes_no_bit():
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            model = model_of()
            loss = exact(model).add(batch(model), 80)
            assert torch.get_num_threads() == threads
            found.append([loss, *(p.grad for p in model.parameters())])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_dropout_draws_the_same_numbers_however_many_threads():
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = tiny_model()
            inputs = batch(model)
            torch.manual_seed(0)
            found.append(Gradients(model, model, 24, ordered=True).add(inputs, 80))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert found[0] != exact(model_of()).add(inputs, 80)
