"""The entry for MLX-LM's LoRA fine-tuning, in bfloat16."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.models import read_model_config
from benchmarks.speed.workload import ALPHA, DROPOUT, ENDLESS, LEARNING_RATE, RANK, StepBarrier, Workload
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets
from tsugiki.model.meta import meta_model


def mlx_lm(workload: Workload, barrier: StepBarrier) -> None:
    """Run `mlx_lm.lora` on random weights of the same shape, with A and B on Tsugiki's default target layers."""
    import mlx.core as mx
    from mlx import optimizers
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import _get_classes

    config = read_model_config(workload.model)
    values = config.to_dict() | {"n_ctx": config.max_position_embeddings}  # the name that MLX-LM's GPT-2 reads
    model_class, arguments = _get_classes(values)
    model = model_class(arguments.from_dict(values))
    model.set_dtype(mx.bfloat16)
    model.freeze()
    lora = {"rank": RANK, "scale": ALPHA / RANK, "dropout": DROPOUT, "keys": _keys(config)}
    linear_to_lora_layers(model, len(model.layers), lora)
    mx.eval(model.parameters())

    def batches(**_: Any) -> Iterator[Any]:
        """Yield batches; a step ends when the loop requests the next batch."""
        rows = mx.array(workload.rows(config.vocab_size).numpy())
        lengths = mx.array([[0, workload.length]] * workload.batch)
        while True:
            for first in range(0, len(rows), workload.batch):
                barrier.end()
                barrier.begin()
                yield rows[first : first + workload.batch], lengths

    with TemporaryDirectory() as folder:
        train(
            model=model,
            optimizer=optimizers.AdamW(learning_rate=LEARNING_RATE),
            train_dataset=None,
            args=TrainingArgs(
                batch_size=workload.batch,
                iters=ENDLESS,
                steps_per_report=ENDLESS,
                steps_per_eval=ENDLESS,
                steps_per_save=ENDLESS,
                max_seq_length=workload.length,
                adapter_file=Path(folder) / "adapters.safetensors",
            ),
            iterate_batches=batches,
        )


def _keys(config: Any) -> set[str]:
    """Return the names of Tsugiki's default target layers relative to their block."""
    return {re.sub(r"^.*?\.\d+\.", "", name) for name in find_targets(meta_model(config), LoraConfig())}
