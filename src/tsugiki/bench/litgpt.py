"""LitGPT's LoRA fine-tuning: its model, its `fit` loop with chunked head and loss, bf16-true."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from tsugiki.base.loading import EMBEDDED, local_folder
from tsugiki.bench.hugging_face import ENDLESS
from tsugiki.bench.models import read_config
from tsugiki.bench.work import ALPHA, DROPOUT, LEARNING_RATE, RANK, StepBarrier, Work
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LLAMAS = ("llama", "qwen3")


def litgpt(work: Work, gate: StepBarrier) -> None:
    """`litgpt finetune_lora` on random weights of the same shape, with pairs on every projection.

    Raises:
        TsugikiError: an architecture that LitGPT does not have, or that is not set up here.
    """
    import lightning
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.finetune.lora import fit
    from litgpt.lora import GPT, Config, mark_only_lora_as_trainable

    config = Config(**_shape(work, read_config(work.model)), **_LORA)
    fabric = lightning.Fabric(devices=1, precision="bf16-true", accelerator="cpu")
    with fabric.init_module():
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    model = fabric.setup_module(model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(trained, lr=LEARNING_RATE))
    rows = torch.split(work.rows(config.vocab_size), work.batch)
    checked = _Rows([row[:1, :8] for row in rows[:1]])  # fit validates before it begins
    with TemporaryDirectory() as folder:
        fit(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
            train_dataloader=_Rows(rows, gate),
            val_dataloader=checked,
            devices=1,
            checkpoint_dir=local_folder(EMBEDDED),  # any tokenizer will do
            out_dir=Path(folder),
            train=TrainArgs(
                save_interval=None,
                log_interval=100,
                global_batch_size=work.batch,
                micro_batch_size=work.batch,
                epochs=ENDLESS,
                max_seq_length=work.length,
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


class _Rows:
    """What LitGPT takes for a data loader; with a gate, each step ends where the next batch is asked for."""

    def __init__(self, rows: Any, gate: StepBarrier | None = None) -> None:
        self.rows, self.gate = rows, gate
        self.dataset = [{"input_ids": row} for batch in rows for row in batch]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for ids in self.rows:
            if self.gate:
                self.gate.end()
                self.gate.begin()
            counts = dict.fromkeys(("raw", "raw_plus_prompt_template"), torch.tensor(ids.numel()))
            yield {"input_ids": ids, "labels": ids, "token_counts": counts}


def _shape(work: Work, config: "PretrainedConfig") -> dict[str, Any]:
    """A config of transformers in LitGPT's words."""
    if config.model_type not in _LLAMAS:
        raise TsugikiError(f"LitGPT has no {config.model_type}; choose a model of type {' or '.join(_LLAMAS)}")
    return {
        "name": work.model,
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
