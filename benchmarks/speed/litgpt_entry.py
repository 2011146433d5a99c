"""The entry for LitGPT's LoRA fine-tuning: its model and its `fit` loop with a chunked loss, in bf16-true."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.models import read_model_config
from benchmarks.speed.workload import ALPHA, DROPOUT, ENDLESS, LEARNING_RATE, RANK, StepBarrier, Workload
from tsugiki.base.resolve import EMBEDDED, local_folder
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MODEL_TYPES = ("llama", "qwen3")


def litgpt(workload: Workload, barrier: StepBarrier) -> None:
    """Run `litgpt finetune_lora` on random weights of the same shape, with A and B on every projection.

    Raises:
        TsugikiError: LitGPT does not have the architecture, or this module does not map its config.
    """
    import lightning
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.finetune.lora import fit
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

    config = Config(**_model_settings(workload, read_model_config(workload.model)), **_LORA)
    fabric = lightning.Fabric(devices=1, precision="bf16-true", accelerator="cpu")
    with fabric.init_module():
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(trained, lr=LEARNING_RATE))
    batches = torch.split(workload.rows(config.vocab_size), workload.batch)
    validation = _DataLoader([batch[:1, :8] for batch in batches[:1]])  # fit evaluates before the first step
    with TemporaryDirectory() as folder:
        fit(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            train_dataloader=_DataLoader(batches, barrier),
            val_dataloader=validation,
            devices=1,
            checkpoint_dir=local_folder(EMBEDDED),  # any tokenizer works
            out_dir=Path(folder),
            train=TrainArgs(
                save_interval=None,
                log_interval=100,
                global_batch_size=workload.batch,
                micro_batch_size=workload.batch,
                epochs=ENDLESS,
                max_seq_length=workload.length,
            ),
            eval=EvalArgs(interval=ENDLESS, initial_validation=False),
            data=Namespace(),
        )


_LORA: dict[str, Any] = {
    "lora_r": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout": DROPOUT,
    "lora_query": True,
    "lora_key": True,
    "lora_value": True,
    "lora_projection": True,
    "lora_mlp": True,
}


class _DataLoader:
    """A data loader for LitGPT. With a barrier, a step ends when the loop requests the next batch."""

    def __init__(self, batches: Any, barrier: StepBarrier | None = None) -> None:
        self.batches, self.barrier = batches, barrier
        self.dataset = [{"input_ids": row} for batch in batches for row in batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for ids in self.batches:
            if self.barrier:
                self.barrier.end()
                self.barrier.begin()
            counts = dict.fromkeys(("raw", "raw_plus_prompt_template"), torch.tensor(ids.numel()))
            yield {"input_ids": ids, "labels": ids, "token_counts": counts}


def _model_settings(workload: Workload, config: "PretrainedConfig") -> dict[str, Any]:
    """Translate a config of transformers to the arguments of LitGPT's `Config`."""
    if config.model_type not in _MODEL_TYPES:
        raise TsugikiError(
            f"no LitGPT settings for {config.model_type}; choose a model of type {' or '.join(_MODEL_TYPES)}"
        )
    return {
        "name": workload.model,
        "block_size": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_embd": config.hidden_size,
        "n_query_groups": config.num_key_value_heads,
        "head_size": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_qk": config.model_type == "qwen3",
        "mlp_class_name": "LLaMAMLP",
    }
