"""Train every weight of a model with Muon: `python examples/embedded_base/pretrain.py pretrain.yaml`, `continue.yaml`.

A file has the settings of `tsugiki train`. If it has a `tokenizer` to train, `model` has the settings of an
architecture, and the run begins with random weights; otherwise `model` is the folder of a model. The data, the rows and
the loop are those of Tsugiki; only the optimiser is another one. The folder `out` gets the model and the fingerprints
of its texts, anew after each `save_steps`, and `start` with what the run began with. A run cannot be resumed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from muon import muon_and_adamw
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, AutoModelForCausalLM
from vocabulary import train_vocabulary

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.read.files import read_records
from tsugiki.data.splits import parse_held_out, split_records
from tsugiki.data.store import read_index
from tsugiki.methods.full import save_model
from tsugiki.model.context import context_length
from tsugiki.training.run.stages import prepared
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import read_yaml, validated
from tsugiki.training.step.loop import TrainingLoop


def main(path: Path) -> None:
    """Train as a file of settings says."""
    settings = read_yaml(path)
    if settings.pop("optimizer", None) != "muon":
        sys.exit(f"{path}: this trains with Muon; `tsugiki train` has AdamW")
    tokenizer = settings.pop("tokenizer", None)
    if tokenizer is not None:
        settings["model"] = str(write_start(settings, tokenizer))
    train(validated(RunConfig, settings, path))


def train(config: RunConfig) -> None:
    """Train the model in the folder `config.model`, and write it to `config.out`."""
    run = prepared(config)
    loop, out = run.loop(), Path(config.out)
    assert isinstance(loop.schedule, LambdaLR)
    loop.optimizer = muon_and_adamw(run.base.model, config, run.ready.choices.learning_rate)
    loop.schedule = LambdaLR(loop.optimizer, loop.schedule.lr_lambdas[0])

    def save(loop: TrainingLoop) -> None:
        save_model(loop.model, run.base.tokenizer, out, config.save_dtype)
        print(f"step {loop.progress.step} of {loop.steps}: loss {loop.step_loss:.4f}", flush=True)

    loop.save = save
    loop.run()


def write_start(settings: dict[str, Any], vocabulary: dict[str, Any]) -> Path:
    """Write a new tokenizer and a model with random weights, and return their folder.

    Args:
        settings: those of the run, with those of the architecture as `model`.
        vocabulary: arguments of `train_vocabulary`, and `data`, more texts to learn the tokens from.
    """
    folder, seed, more = Path(settings["out"], "start"), settings["seed"], vocabulary.pop("data", None)
    files = tuple(filter(None, (settings["data"], more)))
    excluded = held_out_records(files, settings["held_out"], seed)

    def texts() -> Iterator[str]:
        return (record.text for number, record in enumerate(read_records(files)) if number not in excluded)

    tokenizer = train_vocabulary(texts, **vocabulary)
    model = build_model(settings["model"], tokenizer, seed)
    tokenizer.model_max_length = context_length(model)
    save_model(model, tokenizer, folder)
    return folder


def held_out_records(files: tuple[str, ...], held_out: str, seed: int) -> set[int]:
    """Return the numbers of the records that are held out, or are nearly the same as one that is."""
    index = read_index(read_records(files))
    wanted = parse_held_out(held_out)
    assert wanted is not None
    assert not isinstance(wanted, Path)
    return set(split_records(index, wanted, seed, near_duplicates(index.signatures)).tolist())


def build_model(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Build a model with random weights, the same for the same seed; `settings` has `model_type` and its settings."""
    end = tokenizer.eos_token_id
    of_tokenizer = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    set_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings, **of_tokenizer), dtype=torch.float32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
