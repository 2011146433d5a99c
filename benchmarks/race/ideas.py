"""Ideas for fewer steps until a loss: `python -m benchmarks.race.ideas --data DATA --held-out TEXT --out ideas.jsonl`.

A run with default settings and one with each idea start from the same values, for each seed. The held-out text is
evaluated in twelfths of the run, from a third on. The goal is the loss of the default after two thirds of its run. What
an idea needs to reach it, relative to the default, is

    time = rows until the goal (interpolated) × processor time of a row  (+ processor time before the first step)

`--cost` measures the processor time, in alternating turns of the default and the idea. The 95 % interval combines a
jackknife over the held-out documents with the variance between the seeds. A run ends one evaluation after the goal, or
after three quarters; with `--whole` after its last step. Results are added to `--out`, and what is there is not
repeated; `--table` prints them.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from examples.embedded_base.muon import CombinedOptimizer, Muon, split_parameters
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from tsugiki.data.blocks import StepBatches
from tsugiki.fast.forward import losses_without_logits
from tsugiki.lora.pair import LowRank
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.inference import evaluating
from tsugiki.report.table import Table
from tsugiki.training.choose.output_head import head_weights, kept_tokens, predict_sample
from tsugiki.training.model.trainable import restore_values, trained_values
from tsugiki.training.record.interval import t_percentile
from tsugiki.training.run.stages import prepared
from tsugiki.training.run.start import Prepared
from tsugiki.training.score.evaluate import evaluate
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.step.loop import TrainingLoop
from tsugiki.training.step.setup import adamw, build_loop, loraplus
from tsugiki.training.step.text_loss import SampledTextLoss, TextLoss

HEADERS = ["idea", "text", "share of the rows until the goal, by seed", "cost of a row", "time", "last loss"]
DEFAULT, PARTS, GOAL, LAST, TURNS = "default", 12, 8, 9, 5
Losses: TypeAlias = Mapping[int, Tensor]
"""Row -> the base's loss at each of its tokens but the first, and 0 where there is no target."""


def hardest_first(rows: list[int], losses: Losses) -> list[int]:
    """Order the rows of the first pass by the base's loss."""
    return sorted(rows[: len(losses)], key=lambda row: -_mean(losses[row])) + rows[len(losses) :]


def without_easiest(rows: list[int], losses: Losses) -> list[int]:
    """Leave out the quarter of the rows with the base's lowest loss; the other rows make up for their number."""
    left_out = sorted(losses, key=lambda row: _mean(losses[row]))[: len(losses) // 4]
    return ([row for row in rows if row not in left_out] * 2)[: len(rows)]


def _mean(losses: Tensor) -> float:
    return float(losses.sum() / (losses > 0).sum().clamp(min=1))


class SkippingLoss(TextLoss):
    """The loss without the tokens that the base gives at least the probability `likely`; the head skips them.

    The sum is divided by the same number of tokens as without it.
    """

    def __init__(self, losses: Losses, likely: float) -> None:
        self.easy = {row: (loss > 0) & (loss <= -math.log(likely)) for row, loss in losses.items()}

    def __call__(self, model: Any, batch: dict[str, Any], rows: list[int], count: int) -> tuple[Tensor, Tensor | None]:
        """Return the cross-entropy of the other tokens; see `StepLoss`."""
        labels = batch["labels"].clone()
        for label, row in zip(labels, rows, strict=True):
            easy = self.easy[row][: len(label) - 1]
            label[1 : 1 + len(easy)][easy] = IGNORE_INDEX
        return super().__call__(model, {**batch, "labels": labels}, rows, count)


def plain(run: Prepared, rate: float) -> torch.optim.Optimizer:
    """Return the default's optimiser."""
    return adamw(run.base.model, run.start.config, rate, run.ready.choices.head_factor)


def riemannian(run: Prepared, rate: float) -> torch.optim.Optimizer:
    """Return AdamW on the gradients (BᵀB + δ)⁻¹ dA and dB (AAᵀ + δ)⁻¹ (arXiv:2402.02347), with δ as in PEFT."""
    optimizer = plain(run, rate)

    def precondition(*_arguments: Any) -> None:
        for pair in _pairs(run):
            A, B, damping = pair.A.detach(), pair.B.detach(), 1e-2 * torch.eye(len(pair.A))
            dA, dB = (factor.grad for factor in (pair.A, pair.B))
            assert dA is not None
            assert dB is not None
            dA.copy_(torch.linalg.solve(B.T @ B + damping, dA))
            dB.copy_(torch.linalg.solve(A @ A.T + damping, dB.T).T)

    optimizer.register_step_pre_hook(precondition)
    return optimizer


class Rite(torch.optim.Optimizer):
    """LoRA-RITE (arXiv:2410.20625), without its escaped mass, as by default in the authors' code.

    The gradient of a factor is taken in an orthonormal basis of the other one, so that the change of B A does not
    depend on how it is factored. The moments are carried over to each new basis.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all pairs."""
        for group in self.param_groups:
            A, B = group["params"]
            of_A, of_B = self._update(self.state[A], A.grad.T, B).T, self._update(self.state[B], B.grad, A.T)
            A.sub_(group["lr"] * of_A)
            B.sub_(group["lr"] * group["factor"] * of_B)

    @staticmethod
    def _update(state: dict[str, Any], gradient: Tensor, other: Tensor) -> Tensor:
        """Return the update of a factor [n, r] at the learning rate 1; `other` is the other factor, [m, r]."""
        basis, scale = torch.linalg.qr(other)
        inverse, turn = torch.linalg.pinv(scale), basis.T @ state.get("basis", basis)
        step = state["step"] = state.get("step", 0) + 1
        first, second = (beta * (1 - beta ** (step - 1)) / (1 - beta**step) for beta in (0.9, 0.999))
        gradient = gradient @ inverse
        before = turn @ state.get("second", torch.zeros_like(scale)) @ turn.T
        state["second"] = second * before + (1 - second) * gradient.T @ gradient / len(gradient)
        values, vectors = torch.linalg.eigh(state["second"])
        scaled = gradient @ (vectors / (values.clamp(min=0).sqrt() + 1e-6)) @ vectors.T
        moment = state.get("first", torch.zeros_like(gradient)) @ turn.T
        state["first"], state["basis"] = first * moment + (1 - first) * scaled, basis
        update: Tensor = state["first"] @ inverse.T
        return update


def rite(run: Prepared, rate: float) -> torch.optim.Optimizer:
    """Return LoRA-RITE; B of the head has the same factor on its rate as in the default."""
    groups = [{"params": [pair.A, pair.B], "factor": _head_factor(run, pair.B)} for pair in _pairs(run)]
    return Rite(groups, {"lr": rate})


def muon(run: Prepared, rate: float) -> torch.optim.Optimizer:
    """Return Muon for the pairs inside the layers, and AdamW with the default's rates for that of the head."""
    inside, others = split_parameters(run.base.model)
    groups = [{"params": [p], "lr": run.ready.choices.learning_rate * _head_factor(run, p)} for p in others]
    adamws = [torch.optim.AdamW(groups, weight_decay=0.0)] if groups else []
    return CombinedOptimizer([Muon(inside, {"lr": rate, "weight_decay": 0.0}), *adamws])


def _pairs(run: Prepared) -> list[LowRank]:
    return [module for module in run.base.model.modules() if isinstance(module, LowRank)]


def _head_factor(run: Prepared, weight: Tensor) -> float:
    return run.ready.choices.head_factor if any(weight is one for one in head_weights(run.base.model)) else 1.0


@dataclass(frozen=True)
class Idea:
    """What differs from the default."""

    rate: float = 1.0  # factor on the learning rate
    schedule: Callable[[float], float] = lambda share: 1 - share  # share of the rows that is done -> factor on the rate
    optimizer: Callable[[Prepared, float], torch.optim.Optimizer] = plain
    rows: Callable[[list[int], Losses], list[int]] | None = None
    likely: float | None = None  # skip tokens that the base gives at least this probability
    half: float = 0.0  # share of the rows at the start of which a step has half as many
    average: float | None = None  # evaluate the average of the steps' values; see `add_to_average`
    gradient: bool = False  # see `set_from_gradient`
    dropout: float = 0.0  # of LoRA
    likely_tokens: int = 0  # that always have logits, besides the targets, if others are drawn
    drawn: int = 0  # tokens that are drawn for each step; 0: all tokens have logits (see `fast.vocabulary_sample`)


def _at_rates(name: str, rates: Sequence[float], **settings: Any) -> dict[str, Idea]:
    return {f"{name} x{rate:g}": Idea(rate, **settings) for rate in rates}


SAMPLES = [(0, 8192), (4096, 4096), (8192, 2048), (8192, 4096), (8192, 8192), (16384, 16384), (2048, 1024)]
IDEAS: Mapping[str, Idea] = {
    DEFAULT: Idea(),
    **{f"skip {likely}": Idea(likely=likely) for likely in (0.99, 0.95, 0.9)},
    "hardest first": Idea(rows=hardest_first),
    "without easiest quarter": Idea(rows=without_easiest),
    "growing steps": Idea(half=1 / 3),
    **_at_rates("half the rows", (0.5, 0.7, 1), half=1),
    **_at_rates("riemannian", (0.3, 1, 3), optimizer=riemannian),
    **_at_rates("rite", (0.3, 1, 3), optimizer=rite),
    **_at_rates(
        "lora+", (0.1, 0.25, 0.75), optimizer=lambda run, rate: loraplus(run.base.model, run.start.config, rate)
    ),
    **_at_rates("muon", (1, 3, 8), optimizer=muon),
    "dropout 0.1": Idea(dropout=0.1),
    "warm-up": Idea(schedule=lambda share: min(share / 0.1, (1 - share) / 0.9)),
    "constant": Idea(schedule=lambda share: 1.0),
    **_at_rates("rate", (0.5, 2, 3, 6)),
    **{f"average {power:g}": Idea(average=power) for power in (1, 3, 8)},
    "average 3, constant": Idea(average=3, schedule=lambda share: 1.0),
    **_at_rates("average 3", (2,), average=3),
    **_at_rates("squared", (2, 3), schedule=lambda share: (1 - share) ** 2),
    **_at_rates("gradient", (0.5, 1, 1.5), gradient=True),
    **{f"sampled {likely} {drawn}": Idea(likely_tokens=likely, drawn=drawn) for likely, drawn in SAMPLES},
    "gradient, growing steps": Idea(gradient=True, half=1 / 3),
    **_at_rates("gradient, squared", (2,), gradient=True, schedule=lambda share: (1 - share) ** 2),
}


@dataclass(frozen=True)
class PlannedBatches(StepBatches):
    """Steps whose rows are given."""

    plan: list[list[int]]

    def rows(self, step: int) -> list[int]:
        """Return the rows of a step."""
        return self.plan[step]


def loop_of(run: Prepared, idea: Idea, losses: Losses) -> TrainingLoop:
    """Return the loop of a run with an idea."""
    loss: TextLoss | None = SkippingLoss(losses, idea.likely) if idea.likely is not None else None
    if idea.drawn:
        probabilities = predict_sample(run.base.model, run.base.data.blocks).mean_probabilities
        kept = kept_tokens(run.base.data.blocks, probabilities, idea.likely_tokens)
        loss = SampledTextLoss(kept, len(probabilities), idea.drawn, run.start.config.seed)
    for pair in _pairs(run):
        pair.dropout.p = idea.dropout
    of_data = run.base.data.blocks, run.base.data.document_masking
    loop = build_loop(run.start.accelerator, run.start.config, run.ready.choices, run.base.model, *of_data, loss)
    own, size = loop.gradients.batches, run.ready.choices.batch_size
    rows = [row for step in range(run.ready.choices.steps) for row in own.rows(step)]
    rows = idea.rows(rows, losses) if idea.rows else rows
    few = int(len(rows) * idea.half) // size * size
    starts = [*range(0, few, max(1, size // 2)), *range(few, len(rows), size), len(rows)]
    plan = [rows[first:last] for first, last in pairwise(starts)]
    planned = PlannedBatches(own.blocks, own.collate, own.batch_size, own.seed, plan)
    loop.gradients.micro_batches.batches = planned
    loop.steps, loop.optimizer = len(plan), idea.optimizer(run, run.ready.choices.learning_rate * idea.rate)
    loop.schedule = LambdaLR(loop.optimizer, lambda step: idea.schedule(starts[min(step, len(plan))] / len(rows)))
    return loop


@torch.no_grad()
def set_from_gradient(run: Prepared, loop: TrainingLoop) -> None:
    """Set A to an orthonormal basis of directions in which the gradient G of each weight is large, times its length.

    If A is zero, its gradient is in proportion to Bᵀ G, so one with random orthonormal columns in B has a sample of the
    rows of G: the randomised range finder (arXiv:0909.4061) for its right singular vectors. The gradient is that of the
    rows of the first step.
    """
    pairs = _pairs(run)
    lengths = [pair.A.norm(dim=1).mean() for pair in pairs]
    for pair in pairs:
        pair.B.copy_(torch.linalg.qr(torch.randn_like(pair.B))[0])
        pair.A.zero_()
    with torch.enable_grad():
        loop.gradients.step(0)
    for pair, length in zip(pairs, lengths, strict=True):
        assert pair.A.grad is not None
        pair.A.copy_(torch.linalg.qr(pair.A.grad.T)[0].T * length)
        pair.B.zero_()


def add_to_average(average: dict[str, Tensor], values: dict[str, Tensor], step: int, power: float) -> None:
    """Add the values after a step, counted from 1, to an average in which step t has a weight of about t^power.

    This is the polynomial-decay averaging of arXiv:1212.1824.
    """
    for name, value in values.items():
        average.setdefault(name, value.clone()).lerp_(value, (power + 1) / (step + power))


def base_losses(run: Prepared) -> dict[int, Tensor]:
    """Return the losses of the model, as it is now, at all tokens of the training data."""
    batches, found = loop_of(run, Idea(), {}).gradients.batches, dict[int, Tensor]()
    with evaluating(run.base.model):
        for row in range(len(batches.blocks)):
            batch = batches.batch([row])
            labels = batch.pop("labels")
            shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], 1)
            found[row] = losses_without_logits(run.base.model, shifted, **batch, use_cache=False)[0, :-1]
    return found


def train(run: Prepared, idea: Idea, losses: Losses, goal: float, first: int, whole: bool) -> list[dict[str, Any]]:
    """Train with an idea from the values that the model has; return the evaluations, with the share of the rows.

    The first evaluation is after `first` twelfths of the run.
    """
    loop, curve, average = loop_of(run, idea, losses), list[dict[str, Any]](), dict[str, Tensor]()
    before_steps = 0
    if idea.gradient:
        set_from_gradient(run, loop)
        before_steps = len(loop.gradients.batches.rows(0))
    done = np.cumsum([0, *(len(loop.gradients.batches.rows(step)) for step in range(loop.steps))])
    for step in range(loop.steps):
        loop.train_step()
        values = trained_values(run.base.model)
        if idea.average is not None:
            add_to_average(average, values, step + 1, idea.average)
        before, part = (int(one) for one in done[step : step + 2] * PARTS // done[-1])
        if part == before or part < first:
            continue
        reached = any(point["loss"] <= goal for point in curve)
        restore_values(run.base.model, average or values)
        result = evaluate(run.base.model, run.base.tokenizer, run.base.data.windows)
        restore_values(run.base.model, values)
        documents = [score[:2] for score in result.independent]
        share = (before_steps + done[step + 1]) / done[-1]
        curve.append({"share": share, "loss": result.loss, "documents": documents})
        if not whole and (reached or part >= LAST):
            break
    return curve


def cost(run: Prepared, idea: Idea, losses: Losses) -> tuple[float, float]:
    """Return the processor time of a row relative to the default's, and the default's in seconds: medians of turns."""
    loops, seconds = [loop_of(run, one, losses) for one in (Idea(), idea)], list[list[float]]()
    for _turn in range(TURNS + 1):
        seconds.append([])
        for loop in loops:
            rows, started = 0, time.process_time()
            while rows < run.ready.choices.batch_size:
                rows += len(loop.gradients.batches.rows(loop.progress.step))
                loop.train_step()
            seconds[-1].append((time.process_time() - started) / rows)
    return statistics.median(new / old for old, new in seconds[1:]), statistics.median(old for old, _new in seconds[1:])


def easy_tokens(before: Losses, now: Losses) -> dict[str, tuple[float, float, float]]:
    """Return, for each probability at which tokens are skipped: their share of all, and their losses before and now."""
    old, new, found = torch.cat([*before.values()]), torch.cat([*now.values()]), {}
    for likely in (idea.likely for idea in IDEAS.values() if idea.likely is not None):
        easy = (old > 0) & (old <= -math.log(likely))
        found[str(likely)] = (float(easy.sum() / (old > 0).sum()), float(old[easy].mean()), float(new[easy].mean()))
    return found


def measure(options: argparse.Namespace, seed: int) -> None:
    """Measure the ideas that are missing in the file with one seed, and add them to it."""
    fixed = {
        "out": "unused",
        "validation": "none",
        "softmax": "full",
        "held_out_characters": options.characters,
        "seed": seed,
    }
    given = {"model": options.model, "data": options.data, "held_out": options.held_out, "max_steps": options.steps}
    given["batch_size"] = options.batch_size
    run = prepared(validated(RunConfig, {**fixed, **{name: value for name, value in given.items() if value}}, None))
    initial, started = trained_values(run.base.model), time.process_time()
    losses = base_losses(run)
    of_base, choices, found = time.process_time() - started, run.ready.choices, _read(options.out)
    origin = {"text": options.text, "seed": seed, "rows": len(losses), "settings": choices.resolved()}
    kind = "cost" if options.cost else "curve"
    for name in dict.fromkeys([DEFAULT, *options.idea]):
        idea, result = IDEAS[name], dict[str, Any]()
        if any(line["idea"] == name and line["seed"] == seed and kind in line for line in found):
            continue
        restore_values(run.base.model, initial)
        if options.cost:
            result["cost"], of_row = cost(run, idea, losses)
            of_run = of_row * choices.steps * choices.batch_size
            result["before"] = of_base / of_run if idea.rows or idea.likely else 0.0
        else:
            goal = 0.0 if name == DEFAULT else _goal(_curve(_of(found, DEFAULT, seed)))
            result["curve"] = train(run, idea, losses, goal, options.first, options.whole)
            if name == DEFAULT or idea.likely:
                result["easy"] = easy_tokens(losses, base_losses(run))
        found.append({**origin, "idea": name, **result})
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found[-1]) + "\n")


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def _of(lines: Sequence[dict[str, Any]], idea: str, seed: int) -> Any:
    return next(line["curve"] for line in lines if line["idea"] == idea and line["seed"] == seed and "curve" in line)


def _curve(points: Any, left_out: int | None = None) -> list[tuple[float, float]]:
    """Return shares of the rows and losses, without one of the documents."""
    curve = []
    for point in points:
        nll, tokens = np.array([one for number, one in enumerate(point["documents"]) if number != left_out]).sum(0)
        curve.append((point["share"], float(nll / tokens)))
    return curve


def _goal(curve: Sequence[tuple[float, float]]) -> float:
    return next(loss for share, loss in curve if share * PARTS >= GOAL - 1e-9)


def crossing(curve: Sequence[tuple[float, float]], goal: float) -> float:
    """Return where a curve reaches the goal first, on lines between its points.

    Outside of the points the line through the first or last two continues, or through the first and the last if these
    two do not fall.
    """
    reached = [max(number, 1) for number, (_share, loss) in enumerate(curve) if loss <= goal]
    end = reached[0] if reached else len(curve) - 1
    (x0, y0), (x1, y1) = curve[end - 1 : end + 1]
    if y0 <= y1:
        (x0, y0), (x1, y1) = curve[0], curve[-1]
    return max(x0 + (x1 - x0) * (y0 - goal) / (y0 - y1), 1e-3) if y0 > y1 else math.inf


def ratio_and_interval(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float, float]:
    """Return the ratio of the rows until the goal, and its interval, for the default's points and an idea's by seed."""

    def logarithms(left_out: int | None = None) -> Any:
        curves = [[_curve(points, left_out) for points in pair] for pair in pairs]
        return np.log([crossing(idea, _goal(default)) / crossing(default, _goal(default)) for default, idea in curves])

    documents, by_seed = len(pairs[0][0][0]["documents"]), logarithms()
    without = np.array([logarithms(number).mean() for number in range(documents)])
    parts = [((documents - 1) * without.var(), documents - 1), (by_seed.var() / max(len(pairs) - 1, 1), len(pairs) - 1)]
    variance = sum(part for part, _free in parts)
    degrees = variance**2 / max(sum(part**2 / max(free, 1) for part, free in parts), 1e-300)
    half = float(t_percentile(np.array(max(degrees, 1.0)))) * math.sqrt(variance)
    mean = float(by_seed.mean())
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def rows_of(file: Path) -> list[list[str]]:
    """Return the rows of the table for the results in a file."""
    lines, rows = _read(file), []
    costs = {line["idea"]: (line["cost"], line["before"]) for line in lines if "cost" in line}
    for name in dict.fromkeys(line["idea"] for line in lines if "curve" in line):
        own = [line for line in lines if line["idea"] == name and "curve" in line]
        pairs = [(_of(lines, DEFAULT, line["seed"]), line["curve"]) for line in own]
        ratio, before = costs.get(name, (1.0, 0.0))
        if (
            IDEAS[name].likely is None and not IDEAS[name].drawn
        ):  # no other idea saves work in a row, so less than 1 is noise
            ratio = max(ratio, 1.0)
        shares = [[crossing(_curve(one), _goal(_curve(pair[0]))) for one in pair] for pair in pairs]
        times = "–"  # the default's loss has risen, or the idea's does not fall to the goal
        if max(share for pair in shares for share in pair) <= 1:
            parts = [part * ratio + before * PARTS / GOAL for part in ratio_and_interval(pairs)]
            times = "{:.2f} [{:.2f}, {:.2f}]".format(*parts)
        cells = [", ".join(f"{share:.2f}" if share <= 1 else "not" for _default, share in shares)]
        cells.append(f"{ratio:.3f}" + (f" + {before:.3f}" if before else ""))
        last = ", ".join(f"{line['curve'][-1]['loss']:.4f} at {line['curve'][-1]['share']:.2f}" for line in own)
        rows.append([name, own[0]["text"], *cells, times, last])
    return rows


def main() -> None:
    """Run the ideas, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idea", nargs="*", choices=IDEAS, default=list(IDEAS))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", nargs="*", default=[])
    parser.add_argument("--held-out")
    parser.add_argument("--text", default="text", help="the name of the text in the table")
    parser.add_argument("--characters", type=int, default=6000, help="of the held-out text that are evaluated")
    parser.add_argument("--steps", type=int, help="steps of a run; default: three passes")
    parser.add_argument("--batch-size", type=int, help="rows of a step; default: automatic")
    parser.add_argument("--first", type=int, default=4, help="twelfths of the run before the first evaluation")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--whole", action="store_true", help="train to the last step")
    parser.add_argument("--cost", action="store_true", help="measure processor times instead, with the first seed")
    parser.add_argument("--out", type=Path, help="file that gets the results")
    parser.add_argument("--table", type=Path, nargs="*", help="print the results in these files")
    options = parser.parse_args()
    if options.table:
        print(Table(HEADERS, [row for file in options.table for row in rows_of(file)]).to_markdown())
        return
    for seed in options.seeds[:1] if options.cost else options.seeds:
        measure(options, seed)


if __name__ == "__main__":
    main()
