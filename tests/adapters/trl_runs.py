"""The first losses of TRL's trainers, with a grafted model and with PEFT's.

`python -m tests.adapters.trl_runs` prints them in a table.
"""

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import peft
import torch

from tests.tiny import byte_tokenizer, save_tiny, shake
from tsugiki import LoraConfig, graft, load_adapter, merge, reference_model, save_adapter, ungraft

STEPS = 5
STARTS = ("fresh", "trained", "merged")
WITH_REFERENCE = ("DPO", "KTO", "GRPO", "RLOO")
"""Trainers that compare the model with a reference."""
TRAINERS = (*WITH_REFERENCE, "ORPO", "CPO")
PROMPTS = ("the moon", "a tree", "old rain", "my river", "one door", "cold tea", "a fox", "blue ink")
ANSWERS = ((" is round", " is cheese"), (" grows slowly", " sings"), (" falls", " is dry"), (" runs", " sleeps"))


def base_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "base")


def grafted_start(start: str, folder: Path) -> Any:
    """A grafted model of its own base, whose adapter is saved in `folder/adapter` for PEFT.

    An adapter is new, or trained (noise in place of training), or new on a base into which one was merged.
    """
    if not (folder / "base").exists():
        save_tiny(folder / "base", "llama")
        save_adapter(shake(graft(base_model(folder), LoraConfig(r=4, lora_alpha=8))), folder / "sft")
    model = base_model(folder)
    if start == "merged":
        model = ungraft(merge(load_adapter(model, folder / "sft")))
    torch.manual_seed(4)
    model = load_adapter(model, folder / "sft") if start == "trained" else graft(model, LoraConfig(r=4, lora_alpha=8))
    save_adapter(model, folder / "adapter")
    return model


def peft_start(start: str, folder: Path) -> Any:
    """The same model in PEFT, after `grafted_start`."""
    model = base_model(folder)
    if start == "merged":
        model = peft.PeftModel.from_pretrained(model, folder / "sft").merge_and_unload()
    return peft.PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def trainer_of(name: str, model: Any, out: Path, ref_model: Any = None, **settings: Any) -> Any:
    """A trainer of TRL on tiny data."""
    import trl
    from datasets import Dataset
    from trl.experimental import cpo, orpo

    chosen, rejected = zip(*ANSWERS * 2, strict=True)
    data: dict[str, Sequence[Any]] = {"prompt": PROMPTS, "chosen": chosen, "rejected": rejected}
    usual: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    more: dict[str, Any] = {} if ref_model is None else {"ref_model": ref_model}
    if name == "KTO":
        labels = [True] * 8 + [False] * 8
        data = {"prompt": PROMPTS * 2, "completion": chosen + rejected, "label": labels}
    elif name in ("GRPO", "RLOO"):
        data = {"prompt": PROMPTS}
        usual |= {"num_generations": 2, "max_completion_length": 6, "beta": 0.1}
        more["reward_funcs"] = [lambda completions, **_: [float(len(set(text))) for text in completions]]
    module = {"ORPO": orpo, "CPO": cpo}.get(name, trl)
    arguments = getattr(module, f"{name}Config")(**usual | settings)
    rows = Dataset.from_dict({key: list(column) for key, column in data.items()})
    trainer = getattr(module, f"{name}Trainer")
    return trainer(model=model, args=arguments, train_dataset=rows, processing_class=byte_tokenizer(), **more)


def grafted_trainer(name: str, model: Any, out: Path, **settings: Any) -> Any:
    """A trainer of a grafted model, as docs/adapters.md writes it."""
    if name not in ("GRPO", "RLOO"):
        reference = reference_model(model) if name in WITH_REFERENCE else None
        return trainer_of(name, model, out, reference, **settings)
    trainer = trainer_of(name, model, out, beta=0.0, **settings)
    trainer.ref_model, trainer.beta = reference_model(model), 0.1
    return trainer


def steps(trainer: Any) -> list[list[float]]:
    """Train; the loss of each step, the norm of its gradient, and the divergence from the reference if it is logged."""
    trainer.train()
    return [
        [entry[key] for key in ("loss", "grad_norm", "kl") if key in entry]
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def both(name: str, start: str, folder: Path) -> tuple[list[list[float]], list[list[float]]]:
    """The steps of a trainer with a grafted model and with PEFT's."""
    ours = steps(grafted_trainer(name, grafted_start(start, folder), folder / "ours"))
    return ours, steps(trainer_of(name, peft_start(start, folder), folder / "peft"))


def main() -> None:
    warnings.simplefilter("ignore")
    print("| trainer | start | Tsugiki | PEFT |", "| --- | --- | --- | --- |", sep="\n")
    for name, start in product(TRAINERS, STARTS):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
            found = both(name, start, Path(folder))
        shown = [" ".join(f"{step[0]:.5f}" for step in steps_of) for steps_of in found]
        print(f"| {name} | {start} | {shown[0]} | {shown[1]} |", flush=True)


if __name__ == "__main__":
    main()
