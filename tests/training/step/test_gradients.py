"""Loss and gradients of a whole model against autograd on the whole logits."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.errors import refused
from tests.tiny import seeded, shake, store_of, summed_loss, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.data import Blocks, Collator, StepBatches, pack
from tsugiki.fast import detect_document_masking, has_chunked_loss, use_fast_paths
from tsugiki.model import IGNORE_INDEX, disable_dropout, replica_in
from tsugiki.training import Gradients, derived_seed, start_accelerator


def model_of(kind: str = "gpt2") -> Any:
    model = tiny_model(kind)
    disable_dropout(model)
    return model


def adapted(kind: str = "gpt2", targets: list[str] | None = None, dropout: float = 0.5) -> Any:
    """A model with an adapter that has been moved away from its initial values."""
    return shake(graft(model_of(kind), LoraConfig(r=3, lora_dropout=dropout, target_modules=targets)))


def with_threads(count: int, make: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        found = make()
        assert torch.get_num_threads() == count
        return found
    finally:
        torch.set_num_threads(before)


def batches_of(model: Any, batch_size: int = 4, size: int = 24) -> StepBatches:
    """Steps of four rows with several documents each."""
    generator = seeded(5)
    records = [torch.randint(1, 96, (n,), generator=generator).tolist() for n in (9, 30, 5, 14, 20, 7, 11)]
    masking = detect_document_masking(model)
    blocks = pack(store_of(records), np.arange(7), size, pad=0, share_rows=masking != "separate_rows")
    return StepBatches(blocks, Collator(masking, model.dtype), batch_size, seed=1)


def gradients_of(model: Any, computing: Any = None, rows=1, batch_size=4, base_dropout=False) -> Gradients:
    batches = batches_of(model, batch_size)
    return Gradients(model, computing or model, batches, start_accelerator("cpu"), rows, base_dropout)


def plain_gradients(model: Any, batches: StepBatches) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of every parameter that trains, by autograd on the whole logits of the whole step."""
    model.train()
    inputs = batches.batch(batches.rows(0))
    labels = inputs.pop("labels")
    loss = summed_loss(model(**inputs, use_cache=False).logits, labels) / int((labels[:, 1:] != IGNORE_INDEX).sum())
    names, weights = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def assert_gradients(model: Any, wanted: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6, msg=name)
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize(
    ("kind", "targets", "rows"),
    [
        *((kind, None, 1) for kind in ("gpt2", "gemma3_text", "opt", "gemma2", "phi", "bloom", "cohere")),
        *(("gpt2", None, rows) for rows in (3, 5)),
        ("gpt2", ["c_attn"], 1),
        *((kind, ["q_proj", "lm_head"], 2) for kind in ("llama", "gemma2")),
    ],
)
def test_gradients_are_those_of_the_whole_logits(kind: str, targets: list[str] | None, rows: int):
    model = adapted(kind, targets, dropout=0.0) if targets else model_of(kind)
    plain, wanted = plain_gradients(model, batches_of(model))
    use_fast_paths(model)
    assert has_chunked_loss(model)
    found = gradients_of(model, rows=rows)
    assert len(found.micro_batches._share(0)) == -(-4 // rows)
    for _ in range(2):  # each step begins at zero
        torch.testing.assert_close(found.step(0)[1], plain)
        assert_gradients(model, wanted)


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "default"])
def test_rows_whose_length_changes_the_rotary_frequencies_are_computed_alone(kind: str):
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": 12}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=12)
    use_fast_paths(model)
    found = gradients_of(model, rows=4)
    assert found.micro_batches._in_threads is (kind == "default")
    batches, alone = found.batches, 0
    for row in batches.rows(0):
        inputs = batches.batch([row])
        labels = inputs.pop("labels")
        alone += summed_loss(model(**inputs, use_cache=False).logits, labels) / batches.target_tokens(0)
    torch.testing.assert_close(found.step(0)[1], alone.detach())


def test_a_model_whose_head_is_not_known_makes_its_own_logits():
    model = model_of()
    plain, wanted = plain_gradients(model, batches_of(model))
    model.lm_head.register_forward_hook(lambda module, given, y: y)
    use_fast_paths(model)
    assert not has_chunked_loss(model)
    torch.testing.assert_close(gradients_of(model).step(0)[1], plain)
    assert_gradients(model, wanted)


def test_the_gradients_and_the_loss_are_one_buffer():
    model = model_of()
    found = gradients_of(model)
    results = found.step(0, stop=True)
    assert results[0] == 1
    assert torch.equal(torch.cat([*(p.grad.flatten() for p in model.parameters()), results]), found.buffer)
    with refused("requires_grad"):
        gradients_of(model.requires_grad_(False))


def test_bf16_computes_on_a_copy_that_follows_the_weights():
    model = model_of()
    replica = replica_in(torch.bfloat16, model)
    use_fast_paths(replica)
    short = gradients_of(model, replica)
    for _ in range(2):
        short_loss = short.step(0)[1]
        found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        whole_model = copy.deepcopy(model)
        torch.testing.assert_close(short_loss, gradients_of(whole_model).step(0)[1], rtol=2e-2, atol=0)
        for name, parameter in whole_model.named_parameters():
            assert parameter.dtype == found[name].dtype == torch.float32
            cosine = F.cosine_similarity(found[name].flatten(), parameter.grad.flatten(), dim=0)
            assert cosine > 0.98, name
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)


def step_of(model: Any, step: int = 0, **options: Any) -> Tensor:
    """Gradients and loss of a step."""
    found = gradients_of(model, **options)
    found.step(step)
    return found.buffer


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "lm_head"]])
def test_dropout_follows_from_seed_step_and_place(targets: list[str]):
    def make(p: float = 0.5, step: int = 0, rows: int = 1) -> Tensor:
        model = adapted(targets=targets, dropout=p)
        use_fast_paths(model)
        torch.manual_seed(step)  # torch's own generator has no part in it
        return step_of(model, step, rows=rows, batch_size=8)

    one = with_threads(1, make)
    for rows in (2, 3, 4):  # up to the size of micro-batches
        torch.testing.assert_close(make(rows=rows), one)
    for count in (2, 2, 3):
        assert torch.equal(one, with_threads(count, make))
    assert not torch.equal(one, make(0.0))
    assert not torch.equal(one, make(step=1))
    assert len({derived_seed(*order) for order in itertools.permutations((1, 2, 3))}) == 6


def test_a_share_of_the_rows_is_computed_by_each_process():
    def share(index: int, count: int) -> Tensor:
        found = gradients_of(adapted())
        processes = SimpleNamespace(device=torch.device("cpu"), process_index=index, num_processes=count)
        found.accelerator = found.micro_batches.accelerator = processes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", lambda buffer: None)
            found.step(0)
        return found.buffer

    whole = share(0, 1)
    for count in (2, 3):
        torch.testing.assert_close(sum(share(index, count) for index in range(count)), whole)


def apart(kind: str, batch_size: int = 4) -> Gradients:
    """The gradients of an adapter on rows of one document each, which are padded to 40 tokens."""
    model = adapted(kind)
    use_fast_paths(model)
    found = gradients_of(model, batch_size=batch_size)
    blocks = pack(found.batches.blocks.store, np.arange(7), 40, pad=0, share_rows=False)
    found.micro_batches.batches = replace(found.batches, blocks=blocks)
    return found


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_padding_is_not_computed_and_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch):
    def step() -> tuple[Tensor, set[int]]:
        found, lengths = apart(kind), set()
        embeddings = found.model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, given, output: lengths.add(given[0].shape[-1]))
        found.step(0)
        return found.buffer, lengths

    short, lengths = step()
    assert len(lengths) > 1
    assert max(lengths) <= 30, "the longest record"
    monkeypatch.setattr(Blocks, "items", lambda blocks, numbers, apart: [blocks[number] for number in numbers])
    padded, lengths = step()
    assert lengths == {40}
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bloom", "gpt2"])
def test_short_rows_are_computed_at_once_and_change_nothing(kind: str):
    def step(tokens: int) -> tuple[Tensor, list[list[int]]]:
        found = apart(kind, 7)
        micro_batches = found.micro_batches
        micro_batches.tokens_at_once = tokens
        found.step(0)
        lengths = micro_batches.batches.blocks.row_tokens
        return found.buffer, [[lengths(row) for row in micro.rows] for micro in micro_batches._share(0)]

    alone, micro_batches = step(0)
    assert sorted(map(len, micro_batches)) == [1] * 7
    together, micro_batches = step(42)
    assert micro_batches == [[30], [20, 14], [11, 9, 7], [5]]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert torch.equal(with_threads(2, lambda: step(42))[0], together)
