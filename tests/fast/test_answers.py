"""The log-probabilities of answers, computed in chunks of their tokens alone, against whole logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fast.definition import assert_no_less_exact
from tests.fast.test_loss import FLOOR, VOCABULARY, WIDTH, exactly, head_of
from tests.fast.test_loss import results as of_loss
from tests.tiny import grafted, ids, in_pairs, save_tiny, seeded, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, use_fast_paths
from tsugiki.base import load_model
from tsugiki.fast import (
    AnswerTokens,
    Head,
    answer_log_probabilities,
    chunked_answer_losses,
    has_chunked_loss,
    plain_answer_losses,
)
from tsugiki.fast import loss as loss_module
from tsugiki.lora import trainable_parameters
from tsugiki.model import IGNORE_INDEX

FORMS = ["plain", "scaled and capped"]
LENGTHS = [3, 1, 6, 2]  # tokens of the answers


def batch(dtype: torch.dtype) -> tuple[Tensor, AnswerTokens]:
    """Two rows of ten hidden states with four answers, and rows between them that are no answers."""
    generator = seeded(1)
    hidden = torch.randn(2, 10, WIDTH, generator=generator).to(dtype).requires_grad_()
    places = torch.tensor([2, 3, 4, 7, 10, 11, 12, 13, 14, 15, 18, 19])
    return hidden, AnswerTokens(places, torch.randint(VOCABULARY, (12,), generator=generator), LENGTHS)


def results(losses: Any, hidden: Tensor, head: Head, answers: AnswerTokens) -> dict[str, Tensor]:
    """The losses, and the gradients of a sum in which each answer has another weight, as in a preference loss."""
    weights = torch.tensor([1.0, -0.3, 0.0, 2.0])
    summed = of_loss(lambda *given: (losses(*given) * weights).sum(), hidden, head, answers)
    return summed | {"losses": losses(hidden, head, answers).detach()}


@pytest.fixture(params=[1, 5, 64])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one row, of a number that divides answers in the middle, and of all rows."""
    monkeypatch.setattr(loss_module, "_ROWS", (1, request.param))


@pytest.mark.usefixtures("chunk")
@in_pairs(dtype=FLOOR, form=FORMS, kind=["frozen", "grafted", "trained"])
def test_answers_and_gradients_equal_the_definition(
    kind: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    head, (hidden, answers) = head_of(kind, form, dtype), batch(dtype)
    plain = results(plain_answer_losses, hidden, head, answers)
    true = results(plain_answer_losses, hidden.double(), exactly(head), answers)
    if kind != "trained":  # a trained weight has the definition
        monkeypatch.setattr(loss_module, "plain_answer_losses", None)
    found = results(chunked_answer_losses, hidden, head, answers)
    assert_no_less_exact(found, plain, true, FLOOR[dtype])
    assert found["losses"].dtype == torch.promote_types(dtype, torch.float32)
    elsewhere = torch.ones(20, dtype=torch.bool).index_fill(0, answers.places, False)
    assert not found["hidden"].flatten(0, 1)[elsewhere].any()


def test_the_definition_is_the_sum_of_log_probabilities():
    head, (hidden, answers) = head_of("frozen with bias", "scaled and capped", torch.float64), batch(torch.float64)
    log_p = torch.log(torch.softmax(head.logits(hidden), -1)).flatten(0, 1)
    of_answers = log_p[answers.places, answers.targets].split(LENGTHS)
    wanted = torch.stack([of_tokens.sum() for of_tokens in of_answers])
    torch.testing.assert_close(-plain_answer_losses(hidden, head, answers), wanted)


Rows = dict[str, Tensor]
DOCUMENTS = [[(3, 4), (3, 2), (2, 5)], [(5, 6), (5, 8)]]
"""The documents of each row: tokens of the prompt and of the answer."""
PAIRS = [[(20, 9, 12), (5, 14, 11)], [(11, 30, 17), (2, 3, 2)]]
"""Tokens of prompts that two answers share."""


def rows_of(documents: list[list[Any]], vocabulary: int = 96) -> tuple[Rows, list[tuple[Tensor, Tensor]]]:
    """Return rows, long enough for block attention, and each prompt with an answer, alone."""
    length = 75
    tokens, labels = ids(2, length, vocabulary), torch.full((2, length), IGNORE_INDEX)
    positions, alone = torch.arange(length).repeat(2, 1), []
    for row, of_row in enumerate(documents):
        start = 0
        for prompt, *answers in of_row:
            before, start = tokens[row, start : start + prompt], start + prompt
            for answer in answers:
                here = slice(start, start + answer)
                labels[row, here] = tokens[row, here]
                positions[row, here] = torch.arange(answer) + prompt
                alone.append((before, tokens[row, here]))
                start += answer
            positions[row, start:] = torch.arange(length - start)
    return {"tokens": tokens, "labels": labels, "positions": positions}, alone


@pytest.mark.parametrize(
    ("documents", "lengths", "places"),
    [
        (DOCUMENTS, [4, 2, 5, 6, 8], [2, 3, 4, 5, 9, 10, 13]),
        # A shared prompt predicts the first token of both answers.
        (PAIRS, [9, 12, 14, 11, 30, 17, 3, 2], [*range(19, 28), 19, *range(29, 40)]),
    ],
)
def test_the_answers_of_packed_rows_are_found(documents: Any, lengths: list[int], places: list[int]):
    rows, alone = rows_of(documents)
    answers = AnswerTokens.find(rows["labels"], rows["positions"])
    assert answers.lengths == lengths
    assert answers.places.tolist()[: len(places)] == places
    assert torch.equal(answers.targets, torch.cat([answer for _prompt, answer in alone]))
    assert answers.share_prompts == (documents is PAIRS)


def log_probabilities(model: Any, rows: Rows) -> Tensor:
    answers = AnswerTokens.find(rows["labels"], rows["positions"])
    return answer_log_probabilities(model, answers, input_ids=rows["tokens"], position_ids=rows["positions"])


@in_pairs(kind=["gpt2", "llama", "gemma3_text", "embedded"], head=[False, True], shared=[False, True])
def test_a_packed_answer_has_the_log_probability_that_it_has_alone(kind: str, head: bool, shared: bool):
    layers = ["c_attn"] if kind in ("gpt2", "embedded") else ["q_proj", "up_proj"]
    base = load_model("embedded", "fp32") if kind == "embedded" else tiny_model(kind)
    config = LoraConfig(r=2, target_modules=[*layers, *(["lm_head"] if head else [])], lora_dropout=0.0)
    model = grafted(base, config).train()
    names = trainable_parameters(model)
    rows, alone = rows_of(PAIRS if shared else DOCUMENTS, model.config.vocab_size)
    plain = []
    for prompt, answer in alone:
        log_p = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        plain.append(log_p.gather(1, answer[:, None]).sum())
    weights = torch.linspace(-1, 1, len(plain))
    wanted = [torch.stack(plain).detach(), *torch.autograd.grad(torch.stack(plain) @ weights, list(names.values()))]
    whole = log_probabilities(model, rows)
    use_fast_paths(model)
    assert has_chunked_loss(model)
    chunks = log_probabilities(model, rows)
    for found in (whole, chunks):
        ours = [found.detach(), *torch.autograd.grad(found @ weights, list(names.values()))]
        for name, a, b in zip(["values", *names], ours, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * max(1.0, float(b.abs().max())), msg=name)


@pytest.mark.parametrize("shared", [False, True], ids=["two prompts", "one prompt"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "nf4"])
def test_before_the_first_step_an_answer_has_the_bits_of_the_reference(dtype: Any, shared: bool, tmp_path: Path):
    base = save_tiny(tmp_path, n_embd=64, n_positions=128, vocab_size=1000)
    model = load_model(base, dtype)
    torch.manual_seed(0)
    graft(model, LoraConfig(r=2, target_modules=["c_attn", "c_proj", "lm_head"], lora_dropout=0.0))
    use_fast_paths(model)
    assert has_chunked_loss(model)
    rows, _ = rows_of(PAIRS if shared else DOCUMENTS)
    with torch.no_grad(), disable_adapter(model):
        reference = log_probabilities(model, rows)
    model.train()
    policy = log_probabilities(model, rows)
    assert policy.requires_grad
    assert torch.equal(policy, reference)
    assert policy.dtype == torch.float32
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            if name.endswith("B"):
                parameter.normal_(std=0.1)
    assert not torch.equal(log_probabilities(model, rows), reference)
