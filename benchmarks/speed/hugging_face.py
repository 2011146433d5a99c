"""Entries for PEFT, TRL and Trainer, each configured as its documentation recommends for speed."""

import time
from collections.abc import Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from benchmarks.models import build
from benchmarks.speed.workload import (
    ALPHA,
    DROPOUT,
    ENDLESS,
    LEARNING_RATE,
    RANK,
    StepBarrier,
    Workload,
    seconds_of_pair,
    wait_for_accelerator,
)
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.loading import default_device, load_tokenizer
from tsugiki.base.resolve import EMBEDDED
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets
from tsugiki.model.freeze import disable_dropout

_TRIALS = 2
_QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": torch.cuda.is_available()}


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


def chapter(workload: Workload, barrier: StepBarrier) -> None:
    """Train as in the script of the textbook's chapter, without gradient accumulation.

    On a CPU, Trainer accepts the script's fp16=True and computes in float32.
    """
    model = build(workload.model, torch.float32)
    ids = workload.rows(model.config.vocab_size)
    # The script's collator adds an attention mask, here of ones.
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in ids]
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
        trainer = Trainer(
            model=with_peft(model, workload.r, workload.target_modules),
            args=settings,
            train_dataset=rows,
            data_collator=default_data_collator,
        )
        _train(trainer, barrier)


def peft(
    workload: Workload,
    barrier: StepBarrier,
    dtype: torch.dtype,
    autocast: bool = False,
    compiled: bool = False,
    attention: str | None = None,
) -> None:
    """Train PEFT's adapter on a base without dropout; A and B are in float32, which is PEFT's default.

    Without `attention`, SDPA and eager attention are tried and the faster one is used.
    """
    model = without_dropout(workload, dtype)
    if attention:
        model.set_attn_implementation(attention)
    adapted = with_peft(model, workload.r, workload.target_modules)
    train_base_rows(model, adapted, workload, barrier, autocast, compiled, attention)


def sft(workload: Workload, barrier: StepBarrier, checkpointing: bool) -> None:
    """Train with TRL, whose fused loss is computed from hidden states in chunks, on CPUs too."""
    from datasets import Dataset as ArrowDataset
    from trl import SFTConfig, SFTTrainer

    model = without_dropout(workload, torch.bfloat16)
    rows = workload.rows(model.config.vocab_size)
    barrier.note(attention=_attention_of_frozen(model, rows[: workload.batch], autocast=True))
    with TemporaryDirectory() as folder:
        settings = SFTConfig(
            # bf16 is TRL's default; A and B, in float32, are then multiplied in bfloat16 too.
            **_settings(workload, folder, autocast=True),
            max_length=workload.length,
            gradient_checkpointing=checkpointing,
        )
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=ArrowDataset.from_dict({"input_ids": rows.tolist()}),
            processing_class=load_tokenizer(EMBEDDED),  # any tokenizer works, because the rows are token ids already
            peft_config=_peft_config(model, workload.r, workload.target_modules),
        )
        _train(trainer, barrier)


def full(workload: Workload, barrier: StepBarrier, autocast: bool) -> None:
    """Train all parameters with Trainer, without dropout."""
    model = without_dropout(workload, torch.float32)
    train_base_rows(model, model, workload, barrier, autocast)


def dpo(workload: Workload, barrier: StepBarrier, best: bool) -> None:
    """Learn the pairs of a workload with TRL and PEFT, with TRL's default settings or with the `best` ones for speed.

    By default TRL loads the model in float32 and multiplies in bfloat16. A processor that emulates bfloat16 takes many
    times as long, so both compute in float32 there. TRL has no rows without padding at present, and computes
    the head for answers alone only where there is Triton.
    """
    from datasets import Dataset as ArrowDataset
    from trl import DPOConfig, DPOTrainer

    class TokenTrainer(DPOTrainer):  # type: ignore[misc]
        """A trainer for pairs that are token ids already."""

        def _prepare_dataset(self, dataset: ArrowDataset, *_: Any) -> ArrowDataset:
            return dataset

    autocast = preferred_compute_dtype() == "bf16"
    model = without_dropout(workload, torch.bfloat16 if best and autocast else torch.float32)
    barrier.note(dtype="bf16" if autocast else "fp32")
    barrier.loaded()
    pairs = workload.pairs(model.config.vocab_size)
    if best:
        barrier.note(attention=_attention_of_frozen(model, pairs[: workload.batch].flatten(0, 1), autocast))
    columns = {"prompt_ids": pairs[:, 0, : workload.prompt], "chosen_ids": pairs[:, 0, workload.prompt :]}
    columns["rejected_ids"] = pairs[:, 1, workload.prompt :]
    with TemporaryDirectory() as folder:
        settings = DPOConfig(
            **_settings(workload, folder, autocast),
            max_length=max(workload.length, 1024),
            **({"gradient_checkpointing": False, "precompute_ref_log_probs": True} if best else {}),
        )
        started = time.perf_counter()
        trainer = TokenTrainer(
            model=model,
            args=settings,
            train_dataset=ArrowDataset.from_dict({name: column.tolist() for name, column in columns.items()}),
            processing_class=load_tokenizer(EMBEDDED),
            peft_config=_peft_config(model, workload.r, workload.target_modules),
        )
        if best:
            barrier.note(reference=seconds_of_pair(time.perf_counter() - started, len(pairs)))
        _train(trainer, barrier)


peft_fp32 = partial(peft, dtype=torch.float32)
peft_bf16 = partial(peft, dtype=torch.bfloat16)
peft_bf16_sdpa = partial(peft, dtype=torch.bfloat16, attention="sdpa")
peft_bf16_eager = partial(peft, dtype=torch.bfloat16, attention="eager")
peft_bf16_compiled = partial(peft, dtype=torch.bfloat16, compiled=True)
peft_bf16_autocast = partial(peft, dtype=torch.bfloat16, autocast=True)
trl = partial(sft, checkpointing=False)
trl_checkpointed = partial(sft, checkpointing=True)
full_fp32 = partial(full, autocast=False)
full_bf16 = partial(full, autocast=True)
trl_dpo = partial(dpo, best=False)
trl_dpo_best = partial(dpo, best=True)


def with_peft(model: PreTrainedModel, r: int = RANK, target_modules: Sequence[str] = ()) -> Any:
    """Add a new LoRA adapter with PEFT; without `target_modules`, to Tsugiki's default layers."""
    from peft import get_peft_model

    return get_peft_model(model, _peft_config(model, r, target_modules))


def _peft_config(model: PreTrainedModel, r: int, target_modules: Sequence[str]) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import TaskType

    return PeftConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=list(target_modules)
        or sorted({name.rpartition(".")[2] for name in find_targets(model, LoraConfig())}),
    )


def _settings(workload: Workload, folder: str, autocast: bool, compiled: bool = False) -> dict[str, Any]:
    """Return the settings of Trainer for a step that only trains; on a CPU, autocast requires `use_cpu` as well."""
    return {
        "output_dir": folder,
        "max_steps": ENDLESS,
        "per_device_train_batch_size": workload.batch,
        "learning_rate": LEARNING_RATE,
        "bf16": autocast,
        "torch_compile": compiled,
        "use_cpu": autocast and not torch.accelerator.is_available(),
        "save_strategy": "no",
        **_QUIET,
    }


def without_dropout(workload: Workload, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model of a workload without the dropout of the base."""
    model = build(workload.model, dtype)
    disable_dropout(model)
    return model.to(default_device())


def _attention_of_frozen(model: PreTrainedModel, rows: Tensor, autocast: bool) -> str:
    """Freeze the model, and set the attention implementation that is faster while an adapter trains."""
    model.requires_grad_(False).enable_input_require_grads()
    best = _faster_attention(model, rows, autocast)
    model.disable_input_require_grads()
    return best


def _faster_attention(model: PreTrainedModel, rows: Tensor, autocast: bool) -> str:
    """Set the attention implementation, SDPA or eager, that is faster forward and backward; return its name."""
    seconds = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        seconds[name] = min(_forward_and_backward(model, rows.to(model.device), autocast) for _ in range(_TRIALS))
    model.zero_grad()
    best = min(seconds, key=lambda name: seconds[name])
    model.set_attn_implementation(best)
    return best


def _forward_and_backward(model: PreTrainedModel, rows: Tensor, autocast: bool) -> float:
    start = time.perf_counter()
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=autocast):
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    wait_for_accelerator()
    return time.perf_counter() - start


def train_base_rows(
    base: PreTrainedModel,
    model: Any,
    workload: Workload,
    barrier: StepBarrier,
    autocast: bool,
    compiled: bool = False,
    attention: str | None = None,
) -> None:
    """Train a model, which is the base or contains it, with Trainer.

    Without `attention`, the faster implementation is chosen; otherwise the base already has this implementation.
    """
    ids = workload.rows(base.config.vocab_size)
    barrier.note(attention=attention or _faster_attention(base, ids[: workload.batch], autocast))
    train_rows(model, ids, workload, barrier, autocast, compiled)


def train_rows(
    model: Any, ids: Tensor, workload: Workload, barrier: StepBarrier, autocast: bool, compiled: bool = False
) -> None:
    """Train a model with Trainer on rows of token ids, int64 [rows, length]."""
    rows = [{"input_ids": row, "labels": row} for row in ids]
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(**_settings(workload, folder, autocast, compiled))
        _train(Trainer(model=model, args=settings, train_dataset=rows, data_collator=default_data_collator), barrier)


def _train(trainer: Trainer, barrier: StepBarrier) -> None:
    trainer.add_callback(StepBarrierCallback(barrier))
    trainer.train()
