"""Learning which of two answers is better, in one file: pairs, reference, adapter, training loop, evaluation, saving.

    python examples/preference_loop.py

The embedded model, a small Japanese GPT-2, learns from twelve pairs to end a sentence politely. It needs no network and
takes less than a minute on two cores. `src/tsugiki/preference/losses.py` explains the losses.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler
from transformers.utils import logging

from tsugiki import LoraConfig, disable_adapter, graft, save_adapter, trainable_parameters
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import Blocks, document_end, split_records
from tsugiki.fast import AnswerTokens
from tsugiki.preference import TOO_LONG, Answers, dpo, likelihood_loss, open_preferences, pack_preferences

PAIRS = """prompt,chosen,rejected
庭の梅が,咲きました。,咲いた。/昨夜は雨が,降りました。,降った。/弟は手紙を,書いています。,書いている。
この道は駅まで,続きます。,続く。/母が台所で魚を,焼いています。,焼いている。/山の上には雪が,残っています。,残っている。
明日は早く家を,出ます。,出る。/鐘の音が遠くから,聞こえました。,聞こえた。/先生は黒板に字を,書きました。,書いた。
この川の水は,冷たいです。,冷たい。/猫が縁側で,眠っています。,眠っている。/船は港を静かに,離れました。,離れた。
"""


@dataclass(frozen=True)
class Settings:
    """The settings of the run."""

    data: str
    out: str
    model: str = "embedded"
    epochs: int = 6
    batch_size: int = 2  # rows of an optimiser step; a row holds several pairs
    learning_rate: float = 1e-3
    beta: float = 0.1
    likelihood: float = 1.0  # weight of the likelihood of the chosen answers, without which the model forgets to write
    block_size: int = 64
    held_out: float = 0.25
    seed: int = 42


@dataclass(frozen=True)
class Scores:
    """Means over pairs, in nats."""

    dpo: float
    likelihood: float  # loss of the chosen answers per token
    margin: float  # how much more the chosen answer has gained on the reference than the rejected one
    accuracy: float  # share of pairs with a positive margin

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.6f}" for name, value in vars(self).items())


def prepare_data(settings: Settings) -> tuple[Blocks, Blocks]:
    """Tokenise and split the pairs, and pack both parts into rows: prompt, chosen, prompt, rejected, prompt, …"""
    tokenizer = load_tokenizer(settings.model)
    with TemporaryDirectory() as cache:
        pairs = open_preferences(settings.data, tokenizer, Path(cache))
    held_out = split_records(pairs.index, settings.held_out, settings.seed, pairs.groups())
    parts = np.setdiff1d(pairs.usable, held_out), np.intersect1d(pairs.usable, held_out)
    packed = [pack_preferences(pairs, part, settings.block_size, document_end(tokenizer)) for part in parts]
    too_long = [row for _blocks, rows in packed for row in rows]
    for note in (*pairs.notes(), *([pairs.note(TOO_LONG, too_long, settings.block_size)] if too_long else [])):
        print(note)  # what is left out, and why
    return packed[0][0], packed[1][0]


def log_probabilities(model: PreTrainedModel, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each answer of a row, summed over its tokens, and count these tokens."""
    input_ids, labels, position_ids = (row[name][None] for name in ("input_ids", "labels", "position_ids"))
    answers = AnswerTokens.find(labels, position_ids)
    # Position ids restart at 0 in each document, so transformers masks the answers of a row from one another.
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[0]
    log_p = logits[answers.places].float().log_softmax(-1)  # the logits at position i predict token i + 1
    tokens = log_p.gather(1, answers.targets[:, None])[:, 0].split(answers.lengths)
    return torch.stack([answer.sum() for answer in tokens]), torch.tensor(answers.lengths)


def pairs_of(model: PreTrainedModel, row: dict[str, Tensor], reference: Tensor) -> tuple[Answers, Answers]:
    """Return the chosen and the rejected answers of a row, which take turns in it."""
    sums, tokens = log_probabilities(model, row)
    return Answers(sums[0::2], tokens[0::2], reference[0::2]), Answers(sums[1::2], tokens[1::2], reference[1::2])


@torch.no_grad()
def references(model: PreTrainedModel, rows: Blocks) -> list[Tensor]:
    """Compute the log-probabilities of all answers without the adapter, once, since the base never changes."""
    with disable_adapter(model):
        return [log_probabilities(model, row)[0] for row in rows]


def scores(pairs: list[tuple[Answers, Answers]], settings: Settings) -> Scores:
    """Compute the means over the pairs of some rows."""
    losses = torch.cat([dpo(*one, settings.beta) for one in pairs])
    margins = torch.cat([chosen.ratio - rejected.ratio for chosen, rejected in pairs])
    likelihood = torch.cat([likelihood_loss(chosen) for chosen, _ in pairs])
    return Scores(*(values.mean().item() for values in (losses, likelihood, margins, (margins > 0).float())))


@torch.no_grad()
def evaluate(model: PreTrainedModel, rows: Blocks, reference: list[Tensor], settings: Settings) -> Scores:
    """Compute the scores of all pairs of some rows."""
    return scores([pairs_of(model, *one) for one in zip(rows, reference, strict=True)], settings)


def train(settings: Settings) -> tuple[list[Scores], list[Scores]]:
    """Train an adapter and save it; return the scores of every step, and of the held-out pairs before and after."""
    logging.set_verbosity_error()  # it would warn that rows have no mask; padding is at the end and no target
    rows, held_out = prepare_data(settings)
    model = load_model(settings.model)
    torch.manual_seed(settings.seed)  # A is initialised at random
    graft(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0))
    parameters = list(trainable_parameters(model).values())
    reference, held_out_reference = references(model, rows), references(model, held_out)
    total = settings.epochs * -(-len(rows) // settings.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=total)
    steps, evaluations = [], [evaluate(model, held_out, held_out_reference, settings)]
    for epoch in range(settings.epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed + epoch))
        for step in order.split(settings.batch_size):
            pairs = [pairs_of(model, rows[row], reference[row]) for row in step.tolist()]
            count = sum(len(chosen.tokens) for chosen, _ in pairs)
            for chosen, rejected in pairs:
                loss = dpo(chosen, rejected, settings.beta) + settings.likelihood * likelihood_loss(chosen)
                (loss.sum() / count).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps.append(scores(pairs, settings))
            print(f"step {len(steps):2}/{total}  {steps[-1]}")
    evaluations.append(evaluate(model, held_out, held_out_reference, settings))
    print("held-out pairs before and after", *evaluations, sep="\n")
    save_adapter(model, settings.out)
    return steps, evaluations


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        (Path(folder) / "pairs.csv").write_text(PAIRS.replace("/", "\n"), encoding="utf-8")
        train(Settings(data=f"{folder}/pairs.csv", out=f"{folder}/adapter"))
