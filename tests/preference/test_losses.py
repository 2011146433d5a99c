"""Each loss against its formula in float64, against finite differences, and against TRL."""

import math
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import seeded
from tsugiki.preference import (
    LOSSES,
    Answers,
    apo_zero,
    dpo,
    dpo_norm,
    ipo,
    kto,
    kto_baseline,
    likelihood_loss,
    orpo,
    simpo,
)

PAIRS = 6


def sums() -> tuple[Answers, Answers]:
    """Pairs of answers of 2 to 60 tokens with log-ratios up to some ten nats; one is nearly certain."""
    generator = seeded(0)

    def answers() -> Answers:
        tokens = torch.randint(2, 60, (PAIRS,), generator=generator)
        log_p = -tokens * (0.1 + 3 * torch.rand(PAIRS, generator=generator, dtype=torch.float64))
        log_p[0] = -0.002
        reference = log_p + 8 * torch.randn(PAIRS, generator=generator, dtype=torch.float64)
        return Answers(log_p.float().requires_grad_(), tokens, reference.float())

    return answers(), answers()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(log_p: float, tokens: float) -> float:
    p = math.exp(log_p / tokens)
    return math.log(p / (1 - p))


# The formulas of the papers in plain floats: log-probabilities under the model and the reference, and tokens.
FORMULAS: dict[str, Callable[[float, float, float, float, float, float], float]] = {
    "dpo": lambda w, v, rw, rv, nw, nv: -math.log(sigmoid(0.1 * math.log(math.exp(w - rw) / math.exp(v - rv)))),
    "dpo, smoothed": lambda w, v, rw, rv, nw, nv: (
        -0.8 * math.log(sigmoid(0.3 * (w - rw - v + rv))) - 0.2 * math.log(sigmoid(-0.3 * (w - rw - v + rv)))
    ),
    "dpo_norm": lambda w, v, rw, rv, nw, nv: -math.log(sigmoid(5 / nw * (w - rw) - 5 / nv * (v - rv))),
    "ipo": lambda w, v, rw, rv, nw, nv: ((w - rw) / nw - (v - rv) / nv - 5) ** 2,
    "orpo": lambda w, v, rw, rv, nw, nv: -w / nw - 0.1 * math.log(sigmoid(log_odds(w, nw) - log_odds(v, nv))),
    "simpo": lambda w, v, rw, rv, nw, nv: -math.log(sigmoid(2 * w / nw - 2 * v / nv - 1)),
    "apo_zero": lambda w, v, rw, rv, nw, nv: 1 - sigmoid(0.1 * (w - rw)) + sigmoid(0.1 * (v - rv)),
    "likelihood": lambda w, v, rw, rv, nw, nv: -w / nw,
}
OURS: dict[str, Callable[[Answers, Answers], Tensor]] = {
    **{name: loss.function for name, loss in LOSSES.items()},
    "dpo, smoothed": lambda w, v: dpo(w, v, beta=0.3, label_smoothing=0.2),
    "likelihood": lambda w, v: likelihood_loss(w),
}


def slopes(losses: Tensor, *answers: Answers) -> list[Tensor]:
    found = torch.autograd.grad(losses.sum(), [one.log_probabilities for one in answers], allow_unused=True)
    return [torch.zeros(PAIRS) if one is None else one for one in found]


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_and_gradients_are_those_of_the_formula(name: str):
    chosen, rejected = sums()
    formula, found = FORMULAS[name], OURS[name](chosen, rejected)
    parts = ("log_probabilities", "reference", "tokens")
    columns = [getattr(one, part) for part in parts for one in (chosen, rejected)]
    rows = list(zip(*map(Tensor.tolist, columns), strict=True))
    assert found.tolist() == pytest.approx([formula(*row) for row in rows], rel=2e-6)
    assert found.dtype == torch.float32
    step = 1e-5
    for place, slope in enumerate(slopes(found, chosen, rejected)):
        for row, value in zip(rows, slope.tolist(), strict=True):
            moved = [[x + sign * step * (at == place) for at, x in enumerate(row)] for sign in (1, -1)]
            expected = (formula(*moved[0]) - formula(*moved[1])) / (2 * step)
            assert value == pytest.approx(expected, rel=2e-4, abs=2e-7)


def test_kto_of_single_answers():
    good, bad = sums()
    bad = Answers(bad.log_probabilities[:2], bad.tokens[:2], bad.reference[:2])  # type: ignore[index]
    found = kto(good, bad, beta=0.2, good_weight=0.75, bad_weight=2.0, baseline=torch.tensor(1.5))
    wanted = [0.75 * (1 - sigmoid(0.2 * (ratio - 1.5))) for ratio in good.ratio.tolist()]
    wanted += [2.0 * (1 - sigmoid(0.2 * (1.5 - ratio))) for ratio in bad.ratio.tolist()]
    torch.testing.assert_close(found, torch.tensor(wanted))
    nothing = Answers(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    assert len(kto(nothing, bad)) == 2


def test_the_baseline_of_kto_is_the_mean_log_ratio_without_a_gradient():
    answers = Answers(torch.tensor([3.0, 1.0], requires_grad=True), torch.tensor([5, 5]), torch.tensor([0.0, 1.0]))
    assert not kto_baseline(answers).requires_grad
    assert kto_baseline(answers) == 1.5
    below = Answers(-answers.log_probabilities, answers.tokens, torch.zeros(2))
    assert kto_baseline(below) == 0


def test_the_defaults_of_the_table_are_those_of_the_functions():
    chosen, rejected = sums()
    for name, loss in LOSSES.items():
        assert torch.equal(loss.function(chosen, rejected, **loss.defaults), loss.function(chosen, rejected)), name
        assert loss.likelihood == (name != "orpo"), "only ORPO has the likelihood in its formula"
    assert LOSSES["kto"].defaults == {"beta": 0.1, "good_weight": 1.0, "bad_weight": 1.0}


def test_extreme_values_are_finite():
    certain = Answers(torch.tensor([0.0, -1e4], requires_grad=True), torch.tensor([1, 10]), torch.tensor([-1e4, 0.0]))
    never = Answers(torch.tensor([-1e4, 0.0], requires_grad=True), torch.tensor([10, 1]), torch.tensor([0.0, -1e4]))
    for name, loss in LOSSES.items():
        found = loss.function(certain, never)
        assert found.isfinite().all(), name
        assert all(slope.isfinite().all() for slope in slopes(found, certain, never)), name


def trl_outputs(answers: list[Answers]) -> tuple[Any, dict[str, Any]]:
    """What a model of TRL returns for a batch of these answers, and the batch."""
    tokens = torch.cat([one.tokens for one in answers])
    mask = torch.arange(64) < 1 + tokens[:, None]
    mask[:, 0] = False  # the prompt
    each = torch.cat([one.per_token for one in answers])[:, None] * mask[:, 1:]
    zeros = torch.zeros_like(each)
    outputs = SimpleNamespace(log_probs=each, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    batch = {"input_ids": torch.zeros_like(mask, dtype=torch.int64), "attention_mask": mask}
    return lambda **_: outputs, {**batch, "completion_mask": mask.long()}


HERE = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
TRAINER = {"model": SimpleNamespace(training=True), "accelerator": HERE, "aux_loss_enabled": False}
TRAINER |= {"precompute_ref_logps": True, "_total_train_tokens": 0, "_tp_size": 1}
"""What the methods of TRL's trainers look up in `self`: the log-probabilities of the reference are known."""


@pytest.mark.parametrize(
    ("ours", "theirs", "beta"),
    [(dpo, "sigmoid", 0.1), (dpo_norm, "sigmoid_norm", 5.0), (ipo, "ipo", 0.1), (apo_zero, "apo_zero", 0.1)],
)
def test_losses_and_gradients_are_those_of_trl(ours: Any, theirs: str, beta: float):
    pytest.importorskip("trl")
    from trl.trainer.dpo_trainer import DPOTrainer

    chosen, rejected = sums()
    model, batch = trl_outputs([chosen, rejected])
    batch |= {"ref_chosen_logps": chosen.reference, "ref_rejected_logps": rejected.reference}
    settings = {"f_divergence_type": "reverse_kl", "loss_types": [theirs], "loss_weights": [1.0], "beta": beta}
    others = {"ld_alpha": None, "label_smoothing": 0.0, "use_weighting": False, "_metrics": defaultdict(metrics)}
    loss = DPOTrainer._compute_loss(SimpleNamespace(**TRAINER, **settings, **others), model, batch, False)
    assert_same(ours(chosen, rejected, beta).mean(), loss, chosen, rejected)


def test_kto_is_that_of_trl():
    pytest.importorskip("trl")
    from trl.trainer.kto_trainer import KTOTrainer

    good, bad = sums()
    model, batch = trl_outputs([good, bad])
    labels = torch.arange(2 * PAIRS) < PAIRS
    references = torch.cat([good.reference, bad.reference])  # type: ignore[list-item]
    batch |= {"label": labels, "ref_logps": references, "ref_KL_logps": torch.zeros(2)}
    settings = {"loss_type": "kto", "calculate_KL": True, "beta": 0.1, "desirable_weight": 1.2}
    others = {"undesirable_weight": 0.9, "_compute_kl_logps": lambda *_: torch.tensor([1.0, 3.0])}
    trainer = SimpleNamespace(**TRAINER, **settings, **others, _metrics=defaultdict(metrics))
    loss = KTOTrainer._compute_loss(trainer, model, batch, False)
    assert_same(kto(good, bad, 0.1, 1.2, 0.9, baseline=2.0).mean(), loss, good, bad)


def metrics() -> dict[str, Any]:
    return defaultdict(list)


def test_orpo_and_simpo_are_those_of_trl():
    pytest.importorskip("trl")
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    chosen, rejected = sums()
    trainer = SimpleNamespace(beta=0.1, accelerator=HERE)
    odds = ORPOTrainer.odds_ratio_loss(trainer, chosen.per_token, rejected.per_token)[0]
    assert_same(orpo(chosen, rejected).mean(), (likelihood_loss(chosen) - odds).mean(), chosen, rejected)
    settings = {"alpha": 0.0, "loss_type": "simpo", "simpo_gamma": 1.0, "beta": 2.0, "label_smoothing": 0.0}
    trainer = SimpleNamespace(accelerator=HERE, **settings)
    theirs = CPOTrainer.cpo_loss(trainer, chosen.per_token, rejected.per_token)[0]
    assert_same(simpo(chosen, rejected).mean(), theirs.mean(), chosen, rejected)


def assert_same(ours: Tensor, theirs: Tensor, chosen: Answers, rejected: Answers) -> None:
    moved = [chosen.log_probabilities, rejected.log_probabilities]
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)
    for a, b in zip(torch.autograd.grad(ours, moved), torch.autograd.grad(theirs, moved), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-8)
