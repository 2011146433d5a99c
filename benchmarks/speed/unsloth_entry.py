"""The entry for Unsloth: its model and adapter, trained by Trainer; it requires a GPU.

Unsloth's fused LoRA functions require a dropout of 0, so this entry has none. It has not been run yet.
"""

from tempfile import TemporaryDirectory

import torch

from benchmarks.models import build
from benchmarks.speed.workload import ALPHA, RANK, StepBarrier, Workload
from tsugiki.base.loading import load_tokenizer
from tsugiki.base.resolve import EMBEDDED


def unsloth(workload: Workload, barrier: StepBarrier) -> None:
    """Train LoRA on all projections of a random model in bfloat16."""
    from unsloth import FastLanguageModel  # before transformers' Trainer is imported, which it changes

    from benchmarks.speed.hugging_face import train_rows

    with TemporaryDirectory() as folder:
        build(workload.model, torch.bfloat16).save_pretrained(folder)
        load_tokenizer(EMBEDDED).save_pretrained(folder)  # any tokenizer works, because the rows are token ids already
        base, _ = FastLanguageModel.from_pretrained(
            folder, max_seq_length=workload.length, dtype=torch.bfloat16, load_in_4bit=False
        )
        model = FastLanguageModel.get_peft_model(
            base,
            r=RANK,
            lora_alpha=ALPHA,
            lora_dropout=0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            use_gradient_checkpointing=False,
        )
        train_rows(model, workload.rows(base.config.vocab_size), workload, barrier, autocast=True)
