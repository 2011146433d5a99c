"""MLX-LM's LoRA fine-tuning, bfloat16."""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsugiki.base.loading import meta_model
from tsugiki.bench.hugging_face import ENDLESS
from tsugiki.bench.models import read_config
from tsugiki.bench.work import ALPHA, DROPOUT, LEARNING_RATE, RANK, StepBarrier, Work
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets


def mlx_lm(work: Work, gate: StepBarrier) -> None:
    """`mlx_lm.lora` on random weights of the same shape, with pairs on the layers that Tsugiki grafts."""
    import mlx.core as mx
    from mlx import optimizers
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import _get_classes

    config = read_config(work.model)
    given = config.to_dict() | {"n_ctx": config.max_position_embeddings}  # an older name, which MLX-LM's GPT-2 wants
    make, settings = _get_classes(given)
    model = make(settings.from_dict(given))
    model.set_dtype(mx.bfloat16)
    model.freeze()
    pairs = {"rank": RANK, "scale": ALPHA / RANK, "dropout": DROPOUT, "keys": _keys(config)}
    linear_to_lora_layers(model, len(model.layers), pairs)
    mx.eval(model.parameters())

    def batches(**_: Any) -> Iterator[Any]:
        """Each step ends where the next batch is asked for."""
        rows = mx.array(work.rows(config.vocab_size).numpy())
        lengths = mx.array([[0, work.length]] * work.batch)
        while True:
            for first in range(0, len(rows), work.batch):
                gate.end()
                gate.begin()
                yield rows[first : first + work.batch], lengths

    with TemporaryDirectory() as folder:
        train(
            model=model,
            optimizer=optimizers.AdamW(learning_rate=LEARNING_RATE),
            train_dataset=None,
            args=TrainingArgs(
                batch_size=work.batch,
                iters=ENDLESS,
                steps_per_report=ENDLESS,
                steps_per_eval=ENDLESS,
                steps_per_save=ENDLESS,
                max_seq_length=work.length,
                adapter_file=Path(folder) / "adapters.safetensors",
            ),
            iterate_batches=batches,
        )


def _keys(config: Any) -> set[str]:
    """The layers that are grafted by default, by their names inside a block."""
    return {re.sub(r"^.*?\.\d+\.", "", name) for name in find_targets(meta_model(config), LoraConfig())}
