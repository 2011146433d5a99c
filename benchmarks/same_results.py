"""Speed changes nothing that is learned: `python -m benchmarks.same_results`.

From one adapter, without dropout, on the same rows and schedule: the loss of every step by Tsugiki in float32 and by
PEFT with Trainer in float32. Then the held-out loss at the end of a run with each precision of the frozen base, the
dropout of the adapter on as usual.
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
from transformers import Trainer, TrainerCallback, default_data_collator

from tsugiki import save_adapter
from tsugiki.base.loading import load_model
from tsugiki.bench.figures import Figures
from tsugiki.bench.table import markdown
from tsugiki.io.progress import RunProgress
from tsugiki.lora.dropout import disable_dropout
from tsugiki.train.config import RunConfig, validated
from tsugiki.train.record import RunRecord
from tsugiki.train.run import begin_training, prepare, train

HEADERS = {"en": ["what", "figure"], "ja": ["何を", "値"]}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(files("tsugiki") / "assets" / "quickstart"))
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--run-steps", type=int, default=100, help="of each of the runs by precision; 0: none")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
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
    print(markdown((HEADERS["en"], rows)))
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.same_results {shlex.join(sys.argv[1:])}".strip()).write(
            options.out
        )


def _losses(common: dict[str, Any], steps: int) -> tuple[list[float], list[float]]:
    """The loss of every step, ours and PEFT's."""
    with TemporaryDirectory() as folder, RunProgress() as shown:
        given = {**common, "out": folder, "base_dtype": "fp32", "max_steps": steps, "save_steps": 10 * steps}
        config = validated(RunConfig, {**given, "lora": {"lora_dropout": 0.0}}, None)
        ready = prepare(config, shown)
        trainer = begin_training(config, ready, RunRecord(config.to_record()))
        save_adapter(ready.model, Path(folder) / "start")
        ours = Losses(trainer)
        trainer.train()
        base = load_model(config.model)
        disable_dropout(base)
        other = StepLosses(
            model=PeftModel.from_pretrained(base, str(Path(folder) / "start"), is_trainable=True),
            args=trainer.args,
            train_dataset=ready.data.blocks,
            data_collator=default_data_collator,
        )
        theirs = Losses(other)
        other.train()
    return ours.losses, theirs.losses


def _held_out(given: dict[str, Any]) -> float:
    with TemporaryDirectory() as folder:
        record = train(validated(RunConfig, {**given, "out": str(Path(folder) / "run")}, None))
    return float(record.evaluations[-1]["loss"])


class Losses(TrainerCallback):  # type: ignore[misc]
    """The loss of each step of a `RunTrainer` or of a `StepLosses`."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.losses = trainer, list[float]()
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Begin at nothing."""
        self.trainer.step_loss = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Keep the sum of its batches."""
        self.losses.append(self.trainer.step_loss)


class StepLosses(Trainer):  # type: ignore[misc]
    """Trainer, with the loss of the step at hand unrounded."""

    step_loss = 0.0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One batch."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.step_loss += float(loss)
        return loss


if __name__ == "__main__":
    main()
