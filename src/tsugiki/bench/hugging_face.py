"""PEFT, TRL and Trainer, each set up as well as its documentation would."""

import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from tsugiki.bench.models import build
from tsugiki.bench.work import ALPHA, DROPOUT, LEARNING_RATE, RANK, StepBarrier, Work
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.dropout import disable_dropout
from tsugiki.lora.targets import find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENDLESS = 1_000_000
"""Steps that a trainer is told to take: it is stopped before."""
_TRIALS = 2


class GateCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a trainer take one step at a time."""

    def __init__(self, gate: StepBarrier) -> None:
        self.gate = gate

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the turn."""
        self.gate.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimiser has moved, and the gradients are gone."""
        self.gate.end()


class Rows(Dataset[dict[str, Tensor]]):
    """Token rows, all learned; with the mask of ones that transformers' collator for language models adds, or not."""

    def __init__(self, ids: Tensor, mask: bool = False) -> None:
        self.ids, self.mask = ids, mask

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.ids[index]
        return {"input_ids": row, "labels": row} | ({"attention_mask": torch.ones_like(row)} if self.mask else {})


def chapter(work: Work, gate: StepBarrier) -> None:
    """The chapter's script, but for accumulation. Without an accelerator its fp16=True is taken, and float32 stays."""
    model = build(work.model, torch.float32)
    rows = Rows(work.rows(model.config.vocab_size), mask=True)
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=3,
            per_device_train_batch_size=work.batch,
            learning_rate=LEARNING_RATE,
            logging_steps=100,
            save_strategy="epoch",
            fp16=True,
            **_QUIET,
        )
        _train(Trainer(model=with_peft(model), args=settings, train_dataset=rows, **_COLLATED), gate)


def peft(work: Work, gate: StepBarrier, dtype: torch.dtype, autocast: bool = False) -> None:
    """An adapter by PEFT on a base without dropout; A and B are float32, as PEFT keeps them."""
    model = _without_dropout(work, dtype)
    rows = work.rows(model.config.vocab_size)
    grafted = with_peft(model)
    with _autocast(autocast):
        gate.note(attention=_faster_attention(model, rows[: work.batch]))
    with TemporaryDirectory() as folder:
        settings = _settings(work, folder, **_bf16(autocast))
        _train(Trainer(model=grafted, args=settings, train_dataset=Rows(rows), **_COLLATED), gate)


def sft(work: Work, gate: StepBarrier, checkpointing: bool) -> None:
    """TRL: its loss is computed from hidden states in pieces, by its fused head, on a processor too."""
    from datasets import Dataset as Table
    from trl import SFTConfig, SFTTrainer

    from tsugiki.base.loading import EMBEDDED, load_tokenizer

    model = _without_dropout(work, torch.bfloat16)
    rows = work.rows(model.config.vocab_size)
    model.requires_grad_(False).enable_input_require_grads()
    with _autocast(True):
        gate.note(attention=_faster_attention(model, rows[: work.batch]))
    model.disable_input_require_grads()
    with TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=ENDLESS,
            per_device_train_batch_size=work.batch,
            learning_rate=LEARNING_RATE,
            max_length=work.length,
            **_bf16(True),  # TRL's default, and with it the float32 pairs multiply in bfloat16 too
            gradient_checkpointing=checkpointing,
            save_strategy="no",
            **_QUIET,
        )
        trainer = SFTTrainer(
            model=model,
            args=settings,
            train_dataset=Table.from_dict({"input_ids": rows.tolist()}),
            processing_class=load_tokenizer(EMBEDDED),  # any will do for rows of ids
            peft_config=_peft_config(model),
        )
        _train(trainer, gate)


def full(work: Work, gate: StepBarrier, autocast: bool) -> None:
    """Trainer on every weight, without dropout."""
    model = _without_dropout(work, torch.float32)
    rows = work.rows(model.config.vocab_size)
    with _autocast(autocast):
        gate.note(attention=_faster_attention(model, rows[: work.batch]))
    with TemporaryDirectory() as folder:
        settings = _settings(work, folder, **_bf16(autocast))
        _train(Trainer(model=model, args=settings, train_dataset=Rows(rows), **_COLLATED), gate)


peft_fp32 = partial(peft, dtype=torch.float32)
peft_bf16 = partial(peft, dtype=torch.bfloat16)
peft_bf16_autocast = partial(peft, dtype=torch.bfloat16, autocast=True)
trl = partial(sft, checkpointing=False)
trl_checkpointed = partial(sft, checkpointing=True)
trainer_full_fp32 = partial(full, autocast=False)
trainer_full_bf16 = partial(full, autocast=True)


def target_names(model: "PreTrainedModel") -> list[str]:
    """The endings of the layers that Tsugiki grafts by default: every contender grafts these."""
    return sorted({name.rpartition(".")[2] for name in find_targets(model, LoraConfig())})


def with_peft(model: "PreTrainedModel") -> Any:
    """The model with a fresh adapter of PEFT's on it."""
    from peft import get_peft_model

    return get_peft_model(model, _peft_config(model))


_QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": False}
_COLLATED: dict[str, Any] = {"data_collator": default_data_collator}


def _autocast(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def _bf16(enabled: bool) -> dict[str, bool]:
    """Trainer's settings for autocast, which on a processor it wants to be told twice."""
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


def _settings(work: Work, folder: str, **own: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=ENDLESS,
        per_device_train_batch_size=work.batch,
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        **_QUIET,
        **own,
    )


def _without_dropout(work: Work, dtype: torch.dtype) -> "PreTrainedModel":
    model = build(work.model, dtype)
    disable_dropout(model)
    return model


def _faster_attention(model: "PreTrainedModel", rows: Tensor) -> str:
    """Give the model that of eager and SDPA attention which is faster, forward and backward, on these rows."""
    seconds = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        seconds[name] = min(_forward_and_backward(model, rows) for _ in range(_TRIALS))
    model.zero_grad()
    best = min(seconds, key=lambda name: seconds[name])
    model.set_attn_implementation(best)
    return best


def _forward_and_backward(model: "PreTrainedModel", rows: Tensor) -> float:
    began = time.perf_counter()
    model(input_ids=rows.to(model.device), labels=rows.to(model.device), use_cache=False).loss.backward()
    return time.perf_counter() - began


def _train(trainer: Trainer, gate: StepBarrier) -> None:
    trainer.add_callback(GateCallback(gate))
    trainer.train()
