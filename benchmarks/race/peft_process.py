"""LoRA by PEFT and Trainer, as a process of the race: as PEFT's documentation writes it, or set up for speed.

`python -m benchmarks.race.peft_process '{"model": …, "best": true, …}'`, with the fields of `Settings`.

    documented  PEFT's quick tour (r 8, alpha 32, dropout 0.1, PEFT's own layers, learning rate 1e-3), the base in the
                dtype of its file, Trainer's defaults; a text is cut into rows of 512 tokens, a question is a row
    best        LoRA of rank 16 and alpha 32 on all linear layers, no dropout, texts and questions packed into rows of
                512 tokens, bfloat16 weights if the processor multiplies them

The ten checkpoints of a run hold the adapter alone.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.freeze import disable_dropout

LENGTH = 512
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Settings:
    """What the process trains, and how."""

    model: str
    data: str
    """A file of JSON Lines, with a text, or with a prompt and its completion, in each."""
    out: str
    seed: int
    passes: int
    best: bool
    learning_rate: float = 1e-3
    batch_size: int = 8
    attention: str | None = None


def main(settings: Settings) -> None:
    """Train, with a checkpoint after each tenth of the steps."""
    has_bf16 = preferred_compute_dtype() == "bf16"
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = (torch.bfloat16 if has_bf16 else torch.float32) if settings.best else "auto"
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype, attn_implementation=settings.attention)
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=32, lora_dropout=0.1)
    if settings.best:
        disable_dropout(model)
        config.r, config.target_modules, config.lora_dropout = 16, "all-linear", 0.0
    examples = list(_examples(Path(settings.data), tokenizer))
    is_text = all(IGNORE_INDEX not in example["labels"] for example in examples)
    rows = _packed(examples) if settings.best or is_text else [_cut(example) for example in examples]
    arguments = TrainingArguments(
        output_dir=settings.out,
        num_train_epochs=settings.passes,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        save_strategy="steps",
        save_steps=0.1,
        save_only_model=True,
        seed=settings.seed,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    Trainer(get_peft_model(model, config), arguments, train_dataset=rows, data_collator=collator).train()


def _examples(file: Path, tokenizer: Any) -> Iterator[Row]:
    for line in file.read_text("utf-8").splitlines():
        record = json.loads(line)
        if "text" in record:
            ids = [*tokenizer(record["text"]).input_ids, tokenizer.eos_token_id]
            yield {"input_ids": ids, "labels": ids}
            continue
        prompt = tokenizer(record["prompt"]).input_ids
        answer = [*tokenizer(record["completion"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        yield {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def _packed(examples: list[Row]) -> list[Row]:
    """Join the examples, and cut them into rows of the same length; what is left at the end is dropped."""
    joined = {name: list(chain.from_iterable(one[name] for one in examples)) for name in ("input_ids", "labels")}
    starts = range(0, len(joined["input_ids"]) - LENGTH + 1, LENGTH)
    return [{name: ids[start : start + LENGTH] for name, ids in joined.items()} for start in starts]


def _cut(example: Row) -> Row:
    return {name: ids[:LENGTH] for name, ids in example.items()}


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
