"""Measure the time to reach the quality of the chapter's script: `python -m benchmarks.quality kyoka.jsonl`.

The chapter's script (PEFT and Trainer in float32, base dropout on, batch size 4, 4 accumulation steps, learning rate
1e-4, three epochs, rank 8 on c_attn and c_proj) trains on the texts of one author, and its final held-out loss is
measured. Then a run of Tsugiki with the same settings is evaluated every few steps and stops when its loss is as
low. Both train on the same rows and are evaluated on the same windows. Only the time of training steps counts.

To get the texts: `tsugiki aozora --source FOLDER --author 泉鏡花 --out kyoka.jsonl`.
"""

import argparse
import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import Trainer, TrainingArguments, default_data_collator

from benchmarks.figures import Figures
from tsugiki.base.loading import load_model
from tsugiki.bench.hugging_face import StepBarrierCallback, with_peft
from tsugiki.bench.workload import StepBarrier
from tsugiki.report.table import Table
from tsugiki.training.config import CHAPTER, RunConfig
from tsugiki.training.config_files import validated
from tsugiki.training.evaluation.evaluate import evaluate
from tsugiki.training.packing import PackedDataset
from tsugiki.training.run import Run, prepared
from tsugiki.training.train_steps import loop_of

HEADERS = {
    "en": ["run", "steps", "seconds", "held-out loss", "speed-up"],
    "ja": ["実行", "ステップ", "秒", "評価損失", "速さの倍率"],
}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="texts of one author, written by `tsugiki aozora`")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--max-steps", type=int, help="instead of three epochs")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations of Tsugiki's run")
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        settings = {"model": options.model, "data": options.data, "out": folder, "block_size": options.block_size}
        config = validated(RunConfig, {**CHAPTER, **settings, "max_steps": options.max_steps}, None)
        run = prepared(config)
        tokenizer, data = run.texts.tokenizer, run.data
        target, theirs = _chapter(config, tokenizer, data, folder)
        run.display.print(f"the chapter's script: held-out loss {target:.4f} after {theirs:,.0f} s of steps")
        curve = _ours(run, target, options.every)
    step, seconds, loss = curve[-1]
    steps = run.choices.steps
    reached = f"{theirs / seconds:.2f}" if loss <= target else "not reached"
    rows = [
        ["the chapter's script", f"{steps:,}", f"{theirs:,.0f}", f"{target:.4f}", "1"],
        ["Tsugiki", f"{step:,}", f"{seconds:,.0f}", f"{loss:.4f}", reached],
    ]
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.quality {shlex.join(sys.argv[1:])}").write(options.out)


def _chapter(config: RunConfig, tokenizer: Any, data: PackedDataset, folder: str) -> tuple[float, float]:
    """Run the chapter's script, and return its final held-out loss and the seconds of its steps."""
    model = with_peft(load_model(config.model))
    clock = Clock()
    settings = TrainingArguments(
        output_dir=folder,
        num_train_epochs=3,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=1e-4,
        logging_steps=100,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=data.blocks,
        data_collator=default_data_collator,
        callbacks=[StepBarrierCallback(clock)],
    )
    trainer.train()
    return evaluate(model.get_base_model(), tokenizer, data.windows).loss, clock.seconds


def _ours(run: Run, target: float, every: int) -> list[tuple[int, float, float]]:
    """Run Tsugiki until its loss is at most `target`; return step, seconds and held-out loss at each evaluation."""
    loop = loop_of(run)
    curve: list[tuple[int, float, float]] = []
    while loop.progress.step < loop.steps:
        loop.train_step()
        loop.read_losses()
        step, seconds = loop.progress.step, loop.progress.seconds
        if step % every and step < loop.steps:
            continue
        loss = evaluate(run.model, run.texts.tokenizer, run.data.windows).loss
        curve.append((step, seconds, loss))
        run.display.print(f"step {step}  {seconds:,.0f} s  held-out loss {loss:.4f}")
        if loss <= target:
            break
    return curve


class Clock(StepBarrier):
    """A barrier that never waits and adds up the seconds of all steps."""

    def __init__(self) -> None:
        super().__init__(lambda: "step", self._add)
        self.seconds = 0.0

    def _add(self, message: dict[str, Any]) -> None:
        self.seconds += message.get("seconds", 0.0)


if __name__ == "__main__":
    main()
