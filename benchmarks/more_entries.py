"""Entries of `benchmarks.peers`: autocast, gradient checkpointing, and full fine-tuning by Trainer and by Tsugiki."""

from functools import partial

import torch

from tsugiki.bench.hugging_face import peft, sft, train_base_rows, without_dropout
from tsugiki.bench.tsugiki_entry import run
from tsugiki.bench.workload import StepBarrier, Workload


def full(workload: Workload, barrier: StepBarrier, autocast: bool) -> None:
    """Train all parameters with Trainer, without dropout."""
    model = without_dropout(workload, torch.float32)
    train_base_rows(model, model, workload, barrier, autocast)


peft_bf16_autocast = partial(peft, dtype=torch.bfloat16, autocast=True)
trl_checkpointed = partial(sft, checkpointing=True)
trainer_full_fp32 = partial(full, autocast=False)
trainer_full_bf16 = partial(full, autocast=True)
tsugiki_full_fp32 = partial(run, method="full", compute_dtype="fp32")
tsugiki_full_bf16 = partial(run, method="full", compute_dtype="bf16")
