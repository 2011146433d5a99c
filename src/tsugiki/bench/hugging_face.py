"""Entries for PEFT, TRL and Trainer, each configured as its documentation recommends for speed."""

import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from tsugiki.bench.models import build
from tsugiki.bench.workload import ALPHA, DROPOUT, LEARNING_RATE, RANK, StepBarrier, Workload
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.dropout import disable_dropout
from tsugiki.lora.targets import find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDLESS = 1_000_000
"""Number of steps that trainers are configured for; the benchmark stops them earlier."""
_TRIALS = 2


class StepBarrierCallback(TrainerCallback):  # type: ignore[misc]
    """Makes a trainer wait at the barrier before each step."""

    def __init__(self, barrier: StepBarrier) -> None:
        self.barrier = barrier

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait until the step is requested."""
        self.barrier.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report the step. The optimiser has updated the weights and the gradients have been freed."""
        self.barrier.end()


class TokenRows(Dataset[dict[str, Tensor]]):
    """Rows of token ids that are also the labels.

    Args:
        ids: [rows, length].
        mask: whether to add an attention mask of ones, as transformers' collator for language models does.
    """

    def __init__(self, ids: Tensor, mask: bool = False) -> None:
        self.ids, self.mask = ids, mask

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.ids[index]
        return {"input_ids": row, "labels": row} | ({"attention_mask": torch.ones_like(row)} if self.mask else {})


def chapter(workload: Workload, barrier: StepBarrier) -> None:
    """Train as the textbook chapter's script does, without gradient accumulation.

    On a CPU, Trainer accepts the script's fp16=True and computes in float32.
    """
    model = build(workload.model, torch.float32)
    rows = TokenRows(workload.rows(model.config.vocab_size), mask=True)
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=workload.batch,
            learning_rate=LEARNING_RATE,
            logging_steps=100,
            save_strategy="epoch",
            fp16=True,
            **_QUIET,
        )
        _train(Trainer(model=with_peft(model), args=settings, train_dataset=rows, **_COLLATED), barrier)


def peft(workload: Workload, barrier: StepBarrier, dtype: torch.dtype, autocast: bool = False) -> None:
    """Train PEFT's adapter on a base without dropout; A and B are in float32, which is PEFT's default."""
    model = _without_dropout(workload, dtype)
    rows = workload.rows(model.config.vocab_size)
    grafted = with_peft(model)
    with _autocast(autocast):
        barrier.note(attention=_faster_attention(model, rows[: workload.batch]))
    with TemporaryDirectory() as folder:
        settings = _settings(workload, folder, **_bf16(autocast))
        _train(Trainer(model=grafted, args=settings, train_dataset=TokenRows(rows), **_COLLATED), barrier)


def sft(workload: Workload, barrier: StepBarrier, checkpointing: bool) -> None:
    """Train with TRL, whose fused loss is computed from hidden states in chunks, on CPUs too."""
    from datasets import Dataset as ArrowDataset
    from trl import SFTConfig, SFTTrainer

    from tsugiki.base.loading import EMBEDDED, load_tokenizer

    model = _without_dropout(workload, torch.bfloat16)
    rows = workload.rows(model.config.vocab_size)
    model.requires_grad_(False).enable_input_require_grads()
    with _autocast(True):
        barrier.note(attention=_faster_attention(model, rows[: workload.batch]))
    model.disable_input_require_grads()
    with TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=ENDLESS,
            per_device_train_batch_size=workload.batch,
            learning_rate=LEARNING_RATE,
            max_length=workload.length,
            **_bf16(True),  # TRL's default; A and B, in float32, are then multiplied in bfloat16 too
            gradient_checkpointing=checkpointing,
            save_strategy="no",
            **_QUIET,
        )
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=ArrowDataset.from_dict({"input_ids": rows.tolist()}),
            processing_class=load_tokenizer(EMBEDDED),  # any tokenizer works, because the rows are token ids already
            peft_config=_peft_config(model),
        )
        _train(trainer, barrier)


def full(workload: Workload, barrier: StepBarrier, autocast: bool) -> None:
    """Train all parameters with Trainer, without dropout."""
    model = _without_dropout(workload, torch.float32)
    rows = workload.rows(model.config.vocab_size)
    with _autocast(autocast):
        barrier.note(attention=_faster_attention(model, rows[: workload.batch]))
    with TemporaryDirectory() as folder:
        settings = _settings(workload, folder, **_bf16(autocast))
        _train(Trainer(model=model, args=settings, train_dataset=TokenRows(rows), **_COLLATED), barrier)


peft_fp32 = partial(peft, dtype=torch.float32)
peft_bf16 = partial(peft, dtype=torch.bfloat16)
peft_bf16_autocast = partial(peft, dtype=torch.bfloat16, autocast=True)
trl = partial(sft, checkpointing=False)
trl_checkpointed = partial(sft, checkpointing=True)
trainer_full_fp32 = partial(full, autocast=False)
trainer_full_bf16 = partial(full, autocast=True)


def target_names(model: "PreTrainedModel") -> list[str]:
    """Return the last part of the names of Tsugiki's default target layers, which all entries use."""
    return sorted({name.rpartition(".")[2] for name in find_targets(model, LoraConfig())})


def with_peft(model: "PreTrainedModel") -> Any:
    """Add a new LoRA adapter with PEFT."""
    from peft import get_peft_model

    return get_peft_model(model, _peft_config(model))


_QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": False}
_COLLATED: dict[str, Any] = {"data_collator": default_data_collator}


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def _bf16(enabled: bool) -> dict[str, bool]:
    """Return Trainer's settings for autocast; on a CPU it requires `use_cpu` as well."""
    return {"bf16": enabled, "use_cpu": enabled and not torch.accelerator.is_available()}


def _peft_config(model: "PreTrainedModel") -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import TaskType

    return PeftConfig(
        task_type=TaskType.CAUSAL_LM,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=target_names(model),
    )


def _settings(workload: Workload, folder: str, **extra: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=ENDLESS,
        per_device_train_batch_size=workload.batch,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        **_QUIET,
        **extra,
    )


def _without_dropout(workload: Workload, dtype: torch.dtype) -> "PreTrainedModel":
    model = build(workload.model, dtype)
    disable_dropout(model)
    return model


def _faster_attention(model: "PreTrainedModel", rows: Tensor) -> str:
    """Set the attention implementation, SDPA or eager, that is faster forward and backward; return its name."""
    seconds = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        seconds[name] = min(_forward_and_backward(model, rows) for _ in range(_TRIALS))
    model.zero_grad()
    best = min(seconds, key=lambda name: seconds[name])
    model.set_attn_implementation(best)
    return best


def _forward_and_backward(model: "PreTrainedModel", rows: Tensor) -> float:
    start = time.perf_counter()
    model(input_ids=rows.to(model.device), labels=rows.to(model.device), use_cache=False).loss.backward()
    return time.perf_counter() - start


def _train(trainer: Trainer, barrier: StepBarrier) -> None:
    trainer.add_callback(StepBarrierCallback(barrier))
    trainer.train()
