"""A complete LoRA run in one file: data, model, adapter, training loop, evaluation, saving.

    python examples/training_loop.py

The embedded model, a small Japanese GPT-2, learns the old orthography of the quickstart's texts. It needs no network
and takes less than a minute on two cores. This command has the same losses (`training/step/loop.py`):

    tsugiki train --model embedded --data src/tsugiki/assets/quickstart --out runs/loop --epochs 2 --batch-size 8 \
        --learning-rate 2e-3 --block-size 128 --r 8 --lora-dropout 0 --base-dtype fp32 --target-modules all-linear

`tests/examples/test_training_loop.py` compares the two step by step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, get_scheduler
from transformers.utils import logging

from tsugiki import LoraConfig, graft, load_adapter, save_adapter, trainable_parameters
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.data import Window, split_windows
from tsugiki.data.blocks import Blocks, pack
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.encoding import document_end
from tsugiki.data.read.files import content_key, read_records
from tsugiki.data.splits import split_records
from tsugiki.data.store import open_store
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.training import evaluate


@dataclass(frozen=True)
class Settings:
    """The settings of the run, with the names of `tsugiki train`."""

    data: str
    out: str
    model: str = "embedded"
    epochs: int = 2
    batch_size: int = 8  # rows of an optimiser step
    micro_batch_size: int = 4  # rows that are computed at once
    learning_rate: float = 2e-3
    max_grad_norm: float = 1.0
    block_size: int = 128
    held_out: float = 0.1
    seed: int = 42
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(r=8, lora_alpha=32, lora_dropout=0.0))


@dataclass(frozen=True)
class Result:
    """The losses of a run, in nats per token."""

    step_losses: list[float]
    held_out_before: float
    held_out_after: float


def prepare_data(settings: Settings) -> tuple[Blocks, list[Window]]:
    """Tokenise the texts and split them by document.

    Returns:
        The training documents packed into rows of `block_size` tokens, and the held-out documents as windows of text.
    """
    tokenizer = load_tokenizer(settings.model)
    key = content_key(settings.data)  # a hash of the texts: the tokens are cached under it
    with TemporaryDirectory() as cache:
        store = open_store(read_records(settings.data), key, tokenizer, "all", Path(cache))
    # Near-duplicates stay on one side of the split, so that no held-out document is in the training data.
    held_out = split_records(store.index, settings.held_out, settings.seed, near_duplicates(store.index.signatures))
    training = np.setdiff1d(np.arange(len(store.index)), held_out)
    blocks = pack(store, training, settings.block_size, pad=document_end(tokenizer))
    records = [record for number, record in enumerate(read_records(settings.data)) if number in held_out]
    return blocks, split_windows(records, store.index.characters[held_out].tolist())


def steps(blocks: Blocks, settings: Settings) -> Iterator[list[list[dict[str, Tensor]]]]:
    """Yield for each optimiser step its batches, each a list of rows, in a new random order every epoch."""
    for epoch in range(settings.epochs):
        order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(settings.seed + epoch)).tolist()
        rows = [blocks[number] for number in order]
        for start in range(0, len(rows), settings.batch_size):
            step, size = rows[start : start + settings.batch_size], settings.micro_batch_size
            yield [step[first : first + size] for first in range(0, len(step), size)]


def summed_loss(model: PreTrainedModel, batch: list[dict[str, Tensor]]) -> Tensor:
    """Compute the cross-entropy of a batch, summed over its target tokens."""
    names = ("input_ids", "labels", "position_ids")  # each [batch, block_size]
    input_ids, labels, position_ids = (torch.stack([row[name] for row in batch]).to(model.device) for name in names)
    # A row holds several documents. Position ids restart at 0 in each, so transformers masks them from one another.
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    targets = labels[:, 1:].flatten()  # the logits at position i predict token i + 1
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def target_tokens(batch: list[dict[str, Tensor]]) -> int:
    """Count the tokens of a batch that are in the loss."""
    return sum(int((row["labels"][1:] != IGNORE_INDEX).sum()) for row in batch)


def train(settings: Settings) -> Result:
    """Train an adapter and save it to `settings.out`."""
    logging.set_verbosity_error()  # it would warn that rows have no mask; padding is at the end and no target
    blocks, held_out = prepare_data(settings)
    model, tokenizer = load_model(settings.model), load_tokenizer(settings.model)

    torch.manual_seed(settings.seed)  # A is initialised at random
    graft(model, settings.lora)  # freezes the model and adds A and B to the target layers
    parameters = list(trainable_parameters(model).values())
    print(f"{sum(p.numel() for p in parameters):,} trainable parameters, {len(blocks)} rows of {settings.block_size}")

    total = settings.epochs * -(-len(blocks) // settings.batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=total)

    losses: list[float] = []
    before = evaluate(model, tokenizer, held_out).loss  # B is zero, so this is the base model
    for batches in steps(blocks, settings):
        model.train()
        # Dividing by the tokens of the whole step gives every token the same weight, in whichever batch it is.
        tokens, loss = sum(map(target_tokens, batches)), 0.0
        for batch in batches:
            part = summed_loss(model, batch) / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss)
        print(f"step {len(losses):3}/{total}  loss {loss:.4f}")
    after = evaluate(model, tokenizer, held_out).loss
    print(f"held-out loss {before:.4f} -> {after:.4f}")

    save_adapter(model, settings.out)  # adapter_model.safetensors and adapter_config.json, PEFT's files
    return Result(losses, before, after)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        train(Settings(data=str(files("tsugiki") / "assets" / "quickstart"), out=folder))
        load_adapter(load_model("embedded"), folder)
