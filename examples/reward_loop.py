"""Learning from a rule in one file: ask, score, make pairs, learn, and again.

    python examples/reward_loop.py

The embedded model, a small Japanese GPT-2, learns to end its sentences politely. Nobody writes an answer: a function
scores those of the model. It needs no network. `src/tsugiki/training/run/reward.py` is the same as a command.
"""

import json
import re
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler
from transformers.utils import logging

from tsugiki import LoraConfig, graft, save_adapter, trainable_parameters
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import Blocks, document_end, document_start, encode
from tsugiki.fast import AnswerTokens
from tsugiki.generation import draw_index
from tsugiki.preference import Answers, likelihood_loss, open_preferences, pack_preferences, simpo

BEGINNINGS = ["弟は手紙を", "鐘の音が遠くから", "猫が縁側で", "妹は窓のそばで本を", "姉は古い着物を", "庭の梅が"]
SENTENCE = re.compile(r"[^。！？\n]+[。！？]")
POLITE = re.compile(r"(です|ます|でした|ました|ません|でしょう|ましょう|ください)[かねよわ]*[。！？]$")


@dataclass(frozen=True)
class Settings:
    """The settings of the run."""

    prompts: list[str]
    out: str
    model: str = "embedded"
    rounds: int = 2
    samples: int = 4  # answers to each prompt
    tokens: int = 24  # of an answer, at most
    temperature: float = 0.8
    epochs: int = 3  # passes over the pairs of a round
    batch_size: int = 2  # rows of an optimiser step; a row holds several answers
    learning_rate: float = 1e-3
    block_size: int = 128
    seed: int = 42


def reward(prompt: str, answer: str) -> float:
    """Return the share of the sentences that end politely."""
    sentences = SENTENCE.findall(prompt + answer)
    return fmean(bool(POLITE.search(one)) for one in sentences) if sentences else 0.0


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, settings: Settings, seed: int
) -> tuple[str, bool]:
    """Sample an answer, and return whether it is whole; one that is cut off ends with its last whole sentence."""
    ids, end, new = [document_start(tokenizer), *encode(tokenizer, [prompt])[0]], document_end(tokenizer), list[int]()
    for step in range(settings.tokens):
        logits = model(input_ids=torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].float()
        new.append(draw_index((logits / settings.temperature).softmax(-1), seed, step))
        if new[-1] == end:
            return tokenizer.decode(new[:-1]), True
    text = tokenizer.decode(new)
    whole = re.match(r".*[。！？…][」』）]*", text, re.DOTALL)
    return (whole[0], True) if whole else (text, False)


def pair_of(prompt: str, answers: list[tuple[str, bool]]) -> dict[str, str] | None:
    """Return a best whole answer and a worst one, of about the same length; None if the best is not better."""
    scored = [(reward(prompt, text), text, is_whole) for text, is_whole in answers if text.strip()]
    high = max((score for score, _text, is_whole in scored if is_whole), default=0.0)
    low = min((score for score, _text, _is_whole in scored), default=0.0)
    if high <= low:
        return None
    pairs = [(a, b) for (s, a, is_whole), (r, b, _) in product(scored, scored) if is_whole and s == high and r == low]
    chosen, rejected = min(pairs, key=lambda pair: abs(len(pair[0]) - len(pair[1])))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def rows_of(pairs: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> Blocks:
    """Tokenise pairs, and pack them into rows: prompt, chosen, prompt, rejected, prompt, …"""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in pairs), encoding="utf-8")
        found = open_preferences(str(path), tokenizer, Path(folder))
        return pack_preferences(found, found.usable, settings.block_size, document_end(tokenizer))[0]


def losses(model: PreTrainedModel, row: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute SimPO's loss of each pair of a row, with the likelihood of the chosen answer."""
    input_ids, labels, position_ids = (row[name][None] for name in ("input_ids", "labels", "position_ids"))
    tokens = AnswerTokens.find(labels, position_ids)
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits[0]
    log_p = logits[tokens.places].float().log_softmax(-1).gather(1, tokens.targets[:, None])[:, 0]
    sums, counts = torch.stack([one.sum() for one in log_p.split(tokens.lengths)]), torch.tensor(tokens.lengths)
    chosen, rejected = (Answers(sums[first::2], counts[first::2]) for first in (0, 1))
    return simpo(chosen, rejected) + likelihood_loss(chosen)


def learn(model: PreTrainedModel, rows: Blocks, settings: Settings) -> list[float]:
    """Train the adapter on the pairs of a round, and return the loss of each step."""
    parameters, total = (
        list(trainable_parameters(model).values()),
        settings.epochs * -(-len(rows) // settings.batch_size),
    )
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=total)
    steps = []
    for epoch in range(settings.epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed + epoch))
        for step in order.split(settings.batch_size):
            loss = torch.cat([losses(model, rows[row]) for row in step.tolist()]).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps.append(loss.item())
    return steps


def train(settings: Settings) -> list[list[float]]:
    """Ask and learn in rounds, save the adapter, and return the losses of the steps of each round."""
    logging.set_verbosity_error()  # it would warn that rows have no mask; padding is at the end and no target
    model, tokenizer, found = load_model(settings.model), load_tokenizer(settings.model), list[list[float]]()
    torch.manual_seed(settings.seed)  # A is initialised at random, and B is zero, so that the first round asks the base
    graft(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0))
    for number in range(1, settings.rounds + 1):
        asked = [prompt for prompt in settings.prompts for _sample in range(settings.samples)]
        answers = []
        for place, prompt in enumerate(asked):
            seed = sha256(f"{settings.seed} round {number} {place}".encode()).digest()[:8]
            answers.append(answer(model, tokenizer, prompt, settings, int.from_bytes(seed)))
        groups = [answers[first : first + settings.samples] for first in range(0, len(asked), settings.samples)]
        pairs = [pair for pair in map(pair_of, settings.prompts, groups) if pair]
        mean = fmean(reward(prompt, text) for prompt, (text, _is_whole) in zip(asked, answers, strict=True))
        print(f"round {number}: mean reward {mean:.3f}, {len(pairs)} pairs; such as {asked[0]}{answers[0][0]}")
        found.append(learn(model, rows_of(pairs, tokenizer, settings), settings))
    save_adapter(model, settings.out)
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as adapter:
        train(Settings([time + one for time in ("昨夜、", "翌日、", "その頃、") for one in BEGINNINGS], adapter))
