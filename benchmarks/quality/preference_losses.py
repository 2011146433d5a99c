"""What preference losses do to choice and text: `python -m benchmarks.quality.preference_losses PAIRS HELD_OUT`.

Each run trains a new adapter from the same initial values, with the factor on the learning rate of training on texts
and the weight of the likelihood that `--runs` names: `dpo:0@0.1` is DPO without likelihood at a tenth of the rate,
`text@1` trains on the chosen answers alone. It is the loop of examples/preference_loop.py, with the fast paths. Two
accuracies are of the held-out pairs: whether the chosen answer is the more likely one (by its sum), and whether it has
gained more on the base than the rejected one. The losses are in nats a token.
"""

import argparse
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import get_scheduler

from benchmarks.figures import Figures
from tsugiki import LoraConfig, disable_adapter, graft, trainable_parameters
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import document_end
from tsugiki.fast import AnswerTokens, answer_log_probabilities, use_fast_paths
from tsugiki.preference import LOSSES, Answers, likelihood_loss, open_preferences, pack_preferences
from tsugiki.report.table import Table
from tsugiki.training.choose.learning_rate import automatic_learning_rate
from tsugiki.training.record.interval import wilson_interval
from tsugiki.training.settings.config import RunConfig

HEADERS = {
    "en": ["loss", "likelihood", "rate", "seed", "likelier", "gained more", "chosen", "rejected"],
    "ja": [
        "損失",
        "尤度の重み",
        "学習率",
        "シード",
        "選ばれた回答のほうが確率が高い",
        "選ばれた回答のほうが伸びた",
        "選ばれた回答の損失",
        "選ばれなかった回答の損失",
    ],
}
RUNS = (
    *("text@1", "dpo@1", "dpo_norm@1", "kto@1", "apo_zero@1", "orpo@1", "ipo@1", "ipo@0.3", "ipo@0.1"),
    *("simpo@1", "simpo:0@1", "simpo:0@0.1", "dpo:0@1", "dpo_norm:0@1"),
)
Row = tuple[dict[str, Tensor], AnswerTokens]


def main() -> None:
    """Train, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--runs", nargs="*", default=RUNS, help="LOSS[:LIKELIHOOD]@FACTOR")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1, help="rows of 512 tokens in a step")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42])
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    tokenizer.chat_template = None
    torch.manual_seed(42)
    graft(model, LoraConfig(r=16, lora_alpha=32))
    use_fast_paths(model)
    rows, held_out = _rows(options.pairs, tokenizer), _rows(options.held_out, tokenizer)
    parameters = list(trainable_parameters(model).values())
    initial = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad(), disable_adapter(model):
        reference, held_out_reference = [_sums(model, row) for row in rows], [_sums(model, row) for row in held_out]
    steps = options.epochs * -(-len(rows) // options.rows)
    tokens = sum(sum(answers.lengths) for _, answers in rows) * options.rows // len(rows)
    settings = RunConfig(model=options.model, data=("pairs",), out="run")
    automatic = automatic_learning_rate(settings, model.config.hidden_size, steps, tokens)
    table = [["–", "", "", "", *_scores(held_out, held_out_reference, held_out_reference)]]
    for seed in options.seeds:
        for run in options.runs:
            name, factor = run.split("@")
            name, _, weight = name.partition(":")
            with torch.no_grad():
                for parameter, value in zip(parameters, initial, strict=True):
                    parameter.copy_(value)
            rate, likelihood = automatic * float(factor), _likelihood(name, weight)
            _train(model, parameters, rows, reference, name, likelihood, rate, options.epochs, options.rows, seed)
            with torch.no_grad():
                sums = [_sums(model, row) for row in held_out]
            cells = [name, f"{likelihood:g}", f"{rate:.2g} (× {factor})", str(seed)]
            table.append([*cells, *_scores(held_out, sums, held_out_reference)])
            print(*table[-1], sep="  ", flush=True)
    print(Table(HEADERS["en"], table).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.quality.preference_losses {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, table, command).write(options.figures)


def _likelihood(name: str, weight: str) -> float:
    if name == "text":
        return 1.0
    return float(weight) if weight else LOSSES[name].likelihood


def _rows(file: Path, tokenizer: Any) -> list[Row]:
    """Return rows that hold whole pairs, the chosen answer of each before the rejected one."""
    with TemporaryDirectory() as cache:
        pairs = open_preferences(str(file), tokenizer, Path(cache))
    blocks, *_ = pack_preferences(pairs, pairs.usable, 512, document_end(tokenizer))
    rows: list[Row] = []
    for number in range(len(blocks)):
        row = {name: values[None] for name, values in blocks[number].items()}
        rows.append((row, AnswerTokens.find(row.pop("labels"), row["position_ids"])))
    return rows


def _sums(model: Any, row: Row) -> Tensor:
    inputs, answers = row
    ids, positions = inputs["input_ids"], inputs["position_ids"]
    sums: Tensor = answer_log_probabilities(model, answers, input_ids=ids, position_ids=positions)
    return sums


def _pairs(row: Row, sums: Tensor, reference: Tensor) -> tuple[Answers, Answers]:
    tokens = torch.tensor(row[1].lengths)
    return (
        Answers(sums[0::2], tokens[0::2], reference[0::2]),
        Answers(sums[1::2], tokens[1::2], reference[1::2]),
    )


def _train(
    model: Any,
    parameters: list[torch.nn.Parameter],
    rows: list[Row],
    reference: list[Tensor],
    name: str,
    likelihood: float,
    rate: float,
    epochs: int,
    rows_of_step: int,
    seed: int,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, epochs * -(-len(rows) // rows_of_step))
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch))
        for start in range(0, len(rows), rows_of_step):
            numbers = order[start : start + rows_of_step].tolist()
            pairs = sum(len(rows[number][1].lengths) // 2 for number in numbers)
            tokens = sum(sum(rows[number][1].lengths[0::2]) for number in numbers)
            for number in numbers:
                chosen, rejected = _pairs(rows[number], _sums(model, rows[number]), reference[number])
                if name == "text":
                    loss = -chosen.log_probabilities.sum() / tokens
                else:
                    loss = LOSSES[name].function(chosen, rejected).sum() / pairs
                    loss = loss + likelihood * likelihood_loss(chosen).sum() / pairs
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def _scores(rows: list[Row], sums: list[Tensor], reference: list[Tensor]) -> list[str]:
    pairs = [_pairs(*one) for one in zip(rows, sums, reference, strict=True)]
    likelier = torch.cat([chosen.log_probabilities > rejected.log_probabilities for chosen, rejected in pairs])
    gained = torch.cat([chosen.ratio > rejected.ratio for chosen, rejected in pairs])
    low, high = wilson_interval(int(likelier.sum()), len(likelier))
    losses = []
    for answers in zip(*pairs, strict=True):
        total = sum(one.log_probabilities.double().sum().item() for one in answers)
        losses.append(f"{-total / sum(one.tokens.sum().item() for one in answers):.3f}")
    share = f"{likelier.float().mean().item():.1%} [{low:.1%}, {high:.1%}]"
    return [share, f"{gained.float().mean().item():.1%}", *losses]


if __name__ == "__main__":
    main()
