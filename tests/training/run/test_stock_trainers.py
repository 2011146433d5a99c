"""Grafted models in the trainers of others: transformers' Trainer, and TRL's where it is installed."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from tests.distributed.launch import run_function
from tests.errors import refused
from tests.tiny import byte_tokenizer, ids, logits, relative_error, shake, tiny_model
from tsugiki import (
    LoraConfig,
    graft,
    load_adapter,
    save_adapter,
    set_adapter,
    trainable_parameters,
    use_fast_paths,
)
from tsugiki.fast import forward
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS

QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "use_cpu": True}
FILES = {"adapter_config.json", "adapter_model.safetensors", "tsugiki.json"}
RESUMED: dict[str, tuple[str, float | None, list[Any]]] = {
    "lora": ("float32", 1e-5, [LoraConfig(r=2, target_modules="all-linear")]),
    "lora on int8": ("int8", 0.02, [LoraConfig(lora_dropout=0.1)]),
    "a module and biases": ("float32", None, [LoraConfig(modules_to_save=["lm_head"], bias="all")]),
    "dora from pissa": ("float32", None, [LoraConfig(r=2, use_dora=True, init_lora_weights="pissa")]),
    "p-tuning": ("float32", None, [METHODS["p-tuning"].configure({"num_virtual_tokens": 3})]),
    "norms": ("bfloat16", 0.02, [METHODS["norms"].configure({})]),
    "lora on bitsandbytes": ("bitsandbytes", None, [LoraConfig(r=2)]),
    "two active adapters": ("float32", None, [LoraConfig(r=2), LoraConfig(r=2)]),
}
"""The dtype of the base, the largest relative error of PEFT's model, if it is compared, and configs of the adapters."""


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Of which each has its own number of learned tokens."""
    place = torch.arange(16)
    return [
        {"input_ids": tokens, "labels": tokens.masked_fill(place < row % 9, -100)}
        for row, tokens in enumerate(ids(rows=count, length=16))
    ]


def trainer_of(model: Any, folder: Path, **settings: Any) -> Trainer:
    usual = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 5}
    usual |= {"learning_rate": 1e-3, "logging_steps": 1}
    arguments = TrainingArguments(output_dir=str(folder), **{**usual, **QUIET, **settings})
    data = {"train_dataset": rows(20), "eval_dataset": rows(4), "data_collator": default_data_collator}
    return Trainer(model=model, args=arguments, **data)


def base_of(dtype: str, kind: str = "gpt2") -> Any:
    if dtype == "bitsandbytes":
        return bitsandbytes_base()
    model = tiny_model(kind)
    return quantize(model, torch.float32) if dtype == "int8" else model.to(getattr(torch, dtype))


def bitsandbytes_base() -> Any:
    """A model that transformers loads with the 4-bit layers of bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    with TemporaryDirectory() as folder:
        tiny_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu")


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("kind", "targets"), [("gpt2", None), ("llama", ["q_proj", "lm_head"])])
def test_trainer_learns_the_same_without_whole_logits(kind: str, targets: list[str] | None, tmp_path: Path):
    runs = []
    for fast in (True, False):
        model = tiny_model(kind)
        torch.manual_seed(2)
        graft(model, LoraConfig(r=2, lora_dropout=0.0, target_modules=targets))
        if fast:
            use_fast_paths(model)
        trainer = trainer_of(model, tmp_path, gradient_checkpointing=fast)
        with mock.patch.object(forward, "chunked_loss", wraps=forward.chunked_loss) as chunked:
            trainer.train()
        assert chunked.call_count == (10 if fast else 0)
        prediction = trainer.predict(rows(4))
        assert prediction.predictions.shape == (4, 16, 96)
        runs.append((losses(trainer), prediction.metrics["test_loss"], trainable_parameters(model)))
    (ours, ours_after, found), (theirs, theirs_after, wanted) = runs
    assert len(ours) == 5
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours_after == pytest.approx(theirs_after, abs=1e-5)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one_and_peft_reads_it(name: str, tmp_path: Path):
    dtype, tolerance, configs = RESUMED[name]
    adapters = ["default", "two"][: len(configs)]

    def trainer(seed: int) -> Trainer:
        model = base_of(dtype)
        torch.manual_seed(seed)
        for adapter, config in zip(adapters, configs, strict=True):
            graft(model, config, adapter)
        set_adapter(model, adapters)
        return trainer_of(model, tmp_path, save_strategy="steps", save_steps=3)

    whole, resumed = trainer(2), trainer(3)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-5")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    state = resumed.model.state_dict()
    assert [key for key, tensor in whole.model.state_dict().items() if not torch.equal(tensor, state[key])] == []
    resumed.save_model(str(tmp_path / "final"))
    for folder in ("checkpoint-5", "final", *(f"checkpoint-5/{adapter}" for adapter in adapters[1:])):
        assert {path.name for path in (tmp_path / folder).iterdir()} >= FILES
    if tolerance:
        before, after = base_of(dtype), logits(resumed.model)
        assert relative_error(logits(before), after) > 1e-3
        theirs = peft.PeftModel.from_pretrained(tiny_model().to(before.dtype), tmp_path / "final")
        assert relative_error(logits(theirs), after) < tolerance


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = tiny_model()
    graft(model, LoraConfig(r=2))
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    # The "best" one is the worst, which is the first, so that it is another than the last.
    trainer = trainer_of(model, tmp_path, load_best_model_at_end=True, greater_is_better=True, **every)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    first = tiny_model()
    load_adapter(first, tmp_path / "checkpoint-1")
    assert torch.equal(logits(model), logits(first))
    assert not [record for record in caplog.records if "missing keys" in record.message]


def new_model(dtype: str) -> Any:
    model = base_of(dtype, "llama")
    torch.manual_seed(2)
    graft(model, LoraConfig(r=2, lora_dropout=0.0))
    use_fast_paths(model)
    return model


def weights(model: Any) -> dict[str, Any]:
    """What trains, so that it can be pickled."""
    return {name: p.detach().numpy() for name, p in trainable_parameters(model).items()}


def train_with_trainer(folder: Path, dtype: str, rows_each: int, checkpoint: str | None = None) -> Any:
    """Train one row at a time, `rows_each` per step on each of the processes."""
    model = new_model(dtype)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows_each, "save_steps": 3}
    trainer = trainer_of(model, folder, ddp_find_unused_parameters=False, **settings)
    trainer.train(resume_from_checkpoint=checkpoint)
    return losses(trainer), weights(model)


def train_in_a_loop(folder: Path, dtype: str) -> Any:
    """Train on four rows a step, which the processes share, and save the adapter of the model that computes."""
    model = new_model(dtype)
    rank, count = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    computing = nn.parallel.DistributedDataParallel(model) if count > 1 else model
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-3)
    for step in range(3):
        mine = ids(rows=4, length=16, seed=step)[rank::count]
        optimizer.zero_grad()
        computing(input_ids=mine, labels=mine).loss.backward()
        optimizer.step()
    if rank == 0:
        save_adapter(computing, folder)
    return weights(model)


def train_all_ways(folder: Path, dtype: str) -> Any:
    """In one of two processes."""
    return (
        train_with_trainer(folder, dtype, 2),
        train_with_trainer(folder, dtype, 2, str(folder / "checkpoint-3")),
        train_in_a_loop(folder / "loop", dtype),
    )


def assert_same(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name] == pytest.approx(weight, abs=tolerance), name


# The order of a sum changes last bits, and in int8 those decide how other numbers are rounded.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("int8", 2e-3)])
def test_two_processes_learn_and_keep_what_one_does(dtype: str, tolerance: float, tmp_path: Path):
    wanted_losses, wanted = train_with_trainer(tmp_path / "one", dtype, 4)
    looped = train_in_a_loop(tmp_path / "one/loop", dtype)
    both = run_function(train_all_ways, tmp_path / "two", dtype, environment={"ACCELERATE_USE_CPU": "true"})
    for (found_losses, found), resumed, in_a_loop in both:
        assert found_losses == pytest.approx(wanted_losses, abs=tolerance)
        assert_same(found, wanted, tolerance)
        assert resumed[0] == found_losses
        assert_same(resumed[1], found, 0)
        assert_same(in_a_loop, looped, tolerance)
    for saved in ("checkpoint-5", "loop"):
        files = [tmp_path / number / saved / "adapter_model.safetensors" for number in ("two", "one")]
        assert_same(*({name: t.numpy() for name, t in load_file(file).items()} for file in files), tolerance)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_is_one_graph_with_the_same_gradients(backend: str):
    model = tiny_model("llama", num_hidden_layers=1)
    config = LoraConfig(r=2, target_modules="all-linear") if backend == "eager" else LoraConfig(r=2, use_dora=True)
    graft(model, config)
    shake(model)
    found = []
    for call in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        call(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in trainable_parameters(model).items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)


def sft(model: Any, folder: Path, **settings: Any) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    short = {"per_device_train_batch_size": 2, "max_steps": 2, "logging_steps": 1, "bf16": False}
    arguments = trl.SFTConfig(output_dir=str(folder), **short, **QUIET, **settings)
    data = Dataset.from_dict({"input_ids": [row["input_ids"].tolist() for row in rows(8)]})
    return trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=byte_tokenizer())


@pytest.mark.parametrize(("fast", "settings"), [(True, {}), (False, {"gradient_checkpointing": False})])
def test_trl_trains_a_grafted_body_as_it_trains_pefts(fast: bool, settings: dict[str, Any], tmp_path: Path):
    pytest.importorskip("trl")
    model = tiny_model("llama", vocab_size=257)
    torch.manual_seed(2)
    graft(model, LoraConfig(r=2, lora_dropout=0.0))
    before = {name: weight.detach().clone() for name, weight in trainable_parameters(model).items()}
    save_adapter(model, tmp_path / "adapter")
    if fast:
        use_fast_paths(model)
    ours = sft(model, tmp_path / "ours", **settings)
    ours.train()
    assert all(not torch.equal(weight, before[name]) for name, weight in trainable_parameters(model).items())

    base = tiny_model("llama", vocab_size=257)
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    theirs = sft(wrapped, tmp_path / "theirs", **settings)
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    found, wanted = (load_file(tmp_path / who / "checkpoint-2/adapter_model.safetensors") for who in ("ours", "theirs"))
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


def test_a_grafted_weight_may_be_read_but_not_learned_past_its_pair():
    model = tiny_model("llama")
    graft(model, LoraConfig(r=2, target_modules=["lm_head"]))
    head, x = model.lm_head, torch.randn(3, 32)
    assert torch.equal(head.weight, head.base_layer.weight)
    with torch.no_grad():
        assert head.weight is head.base_layer.weight
    (head(x.to(head.weight.dtype)) ** 2).sum().backward()
    with refused("would not train"):
        (x @ head.weight.T).sum().backward()


def test_trl_is_refused_a_grafted_head_that_it_would_not_train(tmp_path: Path):
    model = tiny_model("llama", vocab_size=257)
    graft(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    trainer = sft(model, tmp_path)
    with refused(r"TRL.*\(lm_head, embed_out\)"):
        trainer.train()
