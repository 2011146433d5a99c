"""How the next token of a row is drawn."""

from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from tsugiki.generation import Chooser, Sampling, draw_index, with_penalty_of


def test_indices_are_drawn_with_their_probabilities():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([0.0, 1.0, 0.0, 2.5, 1.5, 0.0])  # of any sum
    drawn = torch.tensor([draw_index(probabilities, generator) for _ in range(4_000)])
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    torch.testing.assert_close(shares, probabilities / 5, rtol=0, atol=0.03)
    assert set(drawn.tolist()) == {1, 3, 4}, "never one of probability 0"


def test_an_index_of_probability_0_is_not_drawn_at_the_ends(monkeypatch: pytest.MonkeyPatch):
    highest = torch.tensor(1.0, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: highest)
    assert draw_index(torch.tensor([0.3, 0.7, 0.0]), torch.Generator()) == 1
    monkeypatch.setattr(torch, "rand", lambda *_, **__: 0 * highest)
    assert draw_index(torch.tensor([0.0, 0.3, 0.7]), torch.Generator()) == 1


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_probabilities_that_are_not_finite_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="not finite"):
        draw_index(torch.tensor(values), torch.Generator())


def test_the_repetition_penalty_is_that_of_transformers_for_prompt_and_new_text():
    logits = torch.tensor([2.0, -1.0, 3.0, 0.5, -4.0])
    chooser = Chooser(Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.15))
    penalised = chooser.penalties(torch.tensor([[0, 4, 4]]), logits[None])[0]
    assert penalised.tolist() == pytest.approx([2 / 1.15, -1, 3, 0.5, -4 * 1.15])
    greedy = Chooser(Sampling(temperature=0, repetition_penalty=2.0))
    assert greedy.choose(logits, [1], [1]) == 2
    assert greedy.choose(logits, [2], [1]) == greedy.choose(logits, [1], [2]) == 0
    assert logits[2] == 3


def test_a_model_that_has_a_repetition_penalty_decides_unless_one_is_given():
    model = tiny_model(vocab_size=257)
    assert with_penalty_of(model, Sampling()).repetition_penalty == 1
    model.generation_config.repetition_penalty = 1.3
    assert with_penalty_of(model, Sampling()).repetition_penalty == 1.3
    assert with_penalty_of(model, Sampling(repetition_penalty=1.0)).repetition_penalty == 1


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-39},
        {"temperature": 1e-6},
        {"temperature": 1e-5},
        {"temperature": 2.0, "top_p": 1e-300},
        {"temperature": 2.0, "min_p": 1.0},
        {"temperature": 1e-5, "top_p": 1e-300, "min_p": 1.0, "top_k": 2**31},
        {"temperature": 1e-5, "repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"temperature": 1e-5, "repetition_penalty": 0.01, "logit_bias": {7: 100.0, 8: -100.0}},
    ],
)
def test_settings_at_their_limits_choose_the_most_probable_token(extreme: dict[str, Any]):
    logits = torch.tensor([-40.0, 3.0, 2.0, 1.0, 0.0, -1.0, -2.0, 30.0, 5.0])
    settings = Sampling(seed=-(2**63), **extreme)
    assert Chooser(settings).choose(logits, [8], [7] if "logit_bias" in extreme else [8]) == 7
