"""Check that the faster computation gives the same losses as PEFT: `python -m benchmarks.quality.same_results`.

The first rows compare the training loss of every step of Tsugiki and of PEFT with Trainer, both in float32, from the
same adapter, without dropout, on the same rows and schedule. The other rows are the final held-out loss of a run for
each dtype of the base, with LoRA dropout at its default.
"""

import argparse
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from benchmarks.figures import Figures
from tsugiki import save_adapter
from tsugiki.base.loading import load_model
from tsugiki.model.freeze import disable_dropout
from tsugiki.report.table import Table
from tsugiki.training.run.stages import prepared, train
from tsugiki.training.settings.config import CHAPTER, RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {"en": ["measurement", "value"], "ja": ["測定項目", "値"]}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(files("tsugiki") / "assets" / "quickstart"))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--run-steps", type=int, default=100, help="steps of the run for each dtype; 0 skips these runs"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    common = {"model": options.model, "data": options.data}
    ours, theirs = _losses(common, options.steps)
    differences = [abs(a - b) / b for a, b in zip(ours, theirs, strict=True)]
    rows = [
        ["loss of step 1: Tsugiki, PEFT (both float32)", f"{ours[0]:.6f}, {theirs[0]:.6f}"],
        [f"loss of step {options.steps}: Tsugiki, PEFT", f"{ours[-1]:.6f}, {theirs[-1]:.6f}"],
        [f"largest relative difference of the loss over {options.steps} steps", f"{max(differences):.1e}"],
    ]
    for precision in ("fp32", "bf16", "int8") if options.run_steps else ():
        loss = _held_out({**common, "base_dtype": precision, "max_steps": options.run_steps})
        rows.append([f"held-out loss after {options.run_steps} steps, base in {precision}", f"{loss:.4f}"])
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.quality.same_results {shlex.join(sys.argv[1:])}".strip()).write(
            options.out
        )


def _losses(common: dict[str, Any], steps: int) -> tuple[list[float], list[float]]:
    """Return the loss of every step, of Tsugiki and of PEFT."""
    with TemporaryDirectory() as folder:
        settings = {**common, "out": folder, "base_dtype": "fp32", "max_steps": steps, "save_steps": 10 * steps}
        config = validated(RunConfig, {**CHAPTER, **settings, "lora": {"r": 8, "lora_dropout": 0.0}}, None)
        run = prepared(config)
        loop = run.loop()
        save_adapter(run.base.model, Path(folder) / "start")
        loop.run()
        base = load_model(config.model)
        disable_dropout(base)
        other = StepLossTrainer(
            model=PeftModel.from_pretrained(base, str(Path(folder) / "start"), is_trainable=True),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=run.ready.choices.batch_size // 4,
                learning_rate=config.learning_rate,
                seed=config.seed,
                save_strategy="no",
                disable_tqdm=True,
                report_to="none",
            ),
            train_dataset=run.base.data.blocks,
            data_collator=default_data_collator,
        )
        other.add_callback(LossCallback(other))
        other.train()
    return [point.loss for point in loop.progress.loss_curve], other.losses


def _held_out(settings: dict[str, Any]) -> float:
    with TemporaryDirectory() as folder:
        record = train(validated(RunConfig, {**settings, "out": str(Path(folder) / "run")}, None))
    return record.evaluations[-1].loss


class LossCallback(TrainerCallback):  # type: ignore[misc]
    """Collects the loss of each step of a `StepLossTrainer`."""

    def __init__(self, trainer: "StepLossTrainer") -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Keep the sum over the batches of the step."""
        self.trainer.losses.append(self.trainer.step_loss)
        self.trainer.step_loss = 0.0


class StepLossTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that adds up the loss of each step; Trainer logs only means."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[float] = []
        self.step_loss = 0.0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train on one batch, and add its loss."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss += float(loss)
        return loss


if __name__ == "__main__":
    main()
