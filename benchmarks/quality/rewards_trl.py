"""TRL's GRPO and online DPO with PEFT, by the rules of a run of Tsugiki.

`python -m benchmarks.quality.rewards_trl grpo --model MODEL --data PROMPTS --reward RULE --seconds S --out DIR`

One process trains for so many seconds of processor time, which are counted from the first step, and saves the adapter
now and then, in a folder whose name is that time. Afterwards `benchmarks.quality.rewards --judge` asks each of them as
it does those of Tsugiki. The base is that of Tsugiki, in bfloat16 where a matrix product of this machine is faster in
it; TRL's settings that are not options are its defaults, but for a batch that fits and no gradient checkpointing.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.data.read.answers import PromptRow, read_prompts
from tsugiki.preference.rewards import parse_rule, reward_of, scores_of


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithm", choices=["grpo", "online_dpo"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--reward", action="append", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of processor time")
    parser.add_argument("--every", type=float, default=120, help="seconds between two adapters that are saved")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, at most")
    parser.add_argument("--prompts", type=int, default=8, help="of a step")
    parser.add_argument("--samples", type=int, default=6, help="answers to each; online DPO has two")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(options.model, "fp32"), load_tokenizer(options.model)
    model.to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = read_prompts(options.data)
    is_chat = bool(tokenizer.chat_template)
    prompts = [[{"role": "user", "content": row.text}] if is_chat else row.text for row in rows]
    dataset = Dataset.from_list([{"prompt": prompt, "place": place} for place, prompt in enumerate(prompts)])
    common: dict[str, Any] = {
        "output_dir": str(options.out / "trainer"),
        "max_steps": 100_000,
        "learning_rate": options.rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 2,
        "temperature": options.temperature,
        "seed": options.seed,
        "gradient_checkpointing": False,
        "bf16": options.dtype == "bf16",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    of_trainer: dict[str, Any] = {
        "model": model,
        "train_dataset": dataset,
        "processing_class": tokenizer,
        "peft_config": lora,
        "reward_funcs": Scores(options.reward, rows),
        "callbacks": [Clock(options)],
    }
    if options.algorithm == "grpo":
        sizes = {"per_device_train_batch_size": options.prompts * options.samples, "num_generations": options.samples}
        GRPOTrainer(args=GRPOConfig(max_completion_length=options.tokens, **sizes, **common), **of_trainer).train()
    else:
        sizes = {"per_device_train_batch_size": options.prompts, "max_new_tokens": options.tokens}
        OnlineDPOTrainer(args=OnlineDPOConfig(**sizes, **common), **of_trainer).train()


class Scores:
    """The rewards of answers by rules of Tsugiki, as a function of TRL."""

    __name__ = "scores"

    def __init__(self, rules: list[str], rows: list[PromptRow]) -> None:
        self.rules, self.rows = [parse_rule(text) for text in rules], rows

    def __call__(self, completions: list[Any], place: list[int], **columns: Any) -> list[float]:
        """Return a reward for each completion; 0 where no rule applies."""
        texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
        answered = [(self.rows[row], text) for row, text in zip(place, texts, strict=True)]
        results = scores_of(self.rules, answered, "1", 10.0, print)
        return [reward_of(self.rules, one) or 0.0 for one in results]


class Clock(TrainerCallback):  # type: ignore[misc]
    """Saves the adapter now and then, and ends the run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.begin, self.saved = options, 0.0, 0.0

    def on_train_begin(self, *_arguments: Any, **_more: Any) -> None:
        """Start the clock."""
        self.begin = time.process_time()

    def on_log(self, *_arguments: Any, logs: dict[str, Any], **_more: Any) -> None:
        """Print what TRL has measured, with the seconds."""
        names = [name for name in logs if name in ("reward", "loss", "rewards/scores/mean", "objective/scores")]
        shown = ", ".join(f"{name} {float(logs[name]):.3f}" for name in names)
        print(f"{time.process_time() - self.begin:.0f} s: {shown}", flush=True)

    def on_step_end(self, _args: Any, _state: Any, control: Any, model: Any, **_more: Any) -> Any:
        """Save the adapter if it is time, and stop if it is over."""
        seconds = time.process_time() - self.begin
        if seconds - self.saved >= self.options.every or seconds >= self.options.seconds:
            self.saved = seconds
            model.save_pretrained(self.options.out / f"{seconds:.0f}")
        control.should_training_stop = seconds >= self.options.seconds
        return control


if __name__ == "__main__":
    main()
