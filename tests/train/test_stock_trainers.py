"""Grafted models in the trainers of others: transformers' Trainer, and TRL's where it is installed."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, default_data_collator

from tests.distributed.launch import run_function
from tests.runs import uneven_blocks
from tests.tiny import byte_tokenizer, ids, logits, relative_error, shake, tiny_model
from tsugiki import (
    LoraConfig,
    TsugikiError,
    graft,
    load_adapter,
    save_adapter,
    trainable_parameters,
    ungraft,
    use_fast_paths,
)
from tsugiki.base.quantization import quantize
from tsugiki.fast import forward
from tsugiki.methods.table import METHODS

QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "use_cpu": True}
FILES = {"adapter_config.json", "adapter_model.safetensors", "tsugiki.json"}
RESUMED: dict[str, tuple[Any, str]] = {
    "lora in bf16": (LoraConfig(lora_dropout=0.1), "bfloat16"),
    "lora on int8": (LoraConfig(lora_dropout=0.1), "int8"),
    "a module and biases": (LoraConfig(modules_to_save=["lm_head"], bias="all"), "float32"),
    "dora from pissa": (LoraConfig(r=2, use_dora=True, init_lora_weights="pissa"), "float32"),
    "p-tuning": (METHODS["p-tuning"].configure({"num_virtual_tokens": 3}), "float32"),
    "norms": (METHODS["norms"].configure({}), "bfloat16"),
}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Of which each has its own number of learned tokens."""
    found = []
    for row, tokens in enumerate(ids(rows=count, length=16)):
        labels = tokens.clone()
        labels[: row % 9] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def trainer_of(model: Any, folder: Path, **settings: Any) -> Trainer:
    usual = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "logging_steps": 1,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**usual, **QUIET, **settings})
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(20),
        eval_dataset=rows(4),
        data_collator=default_data_collator,
    )


def base_of(dtype: str, kind: str = "gpt2") -> Any:
    model = tiny_model(kind)
    return quantize(model, torch.float32) if dtype == "int8" else model.to(getattr(torch, dtype))


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("kind", "targets"), [("gpt2", None), ("llama", ["q_proj", "lm_head"])])
def test_trainer_learns_the_same_without_whole_logits(
    kind: str, targets: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = []
    chunked = forward.chunked_loss
    monkeypatch.setattr(forward, "chunked_loss", lambda *given: used.append(1) or chunked(*given))
    runs = []
    for fast in (True, False):
        model = tiny_model(kind)
        torch.manual_seed(2)
        graft(model, LoraConfig(r=2, lora_dropout=0.0, target_modules=targets))
        if fast:
            use_fast_paths(model)
        used.clear()
        trainer = trainer_of(model, tmp_path, gradient_checkpointing=fast)
        trainer.train()
        assert len(used) == (10 if fast else 0)
        prediction = trainer.predict(rows(4))
        assert prediction.predictions.shape == (4, 16, 96)
        runs.append((losses(trainer), prediction.metrics["test_loss"], trainable_parameters(model)))
    (ours, ours_after, found), (theirs, theirs_after, wanted) = runs
    assert len(ours) == 5
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours_after == pytest.approx(theirs_after, abs=1e-5)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_trainers_defaults_keep_the_adapter(dtype: str, tmp_path: Path):
    model = base_of(dtype, "llama")
    graft(model, LoraConfig(r=2, target_modules="all-linear"))
    trainer = trainer_of(model, tmp_path, per_device_train_batch_size=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert {path.name for path in (tmp_path / "checkpoint-5").iterdir()} >= FILES
    assert {path.name for path in (tmp_path / "final").iterdir()} == FILES | {"training_args.bin"}
    for folder in (tmp_path / "checkpoint-5", tmp_path / "final"):
        loaded = base_of(dtype, "llama")
        load_adapter(loaded, folder)
        assert torch.equal(logits(loaded), logits(model))
        theirs = peft.PeftModel.from_pretrained(tiny_model("llama").to(model.dtype), folder)
        error = relative_error(logits(theirs), logits(model))
        assert error < {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.02}[dtype]
    assert relative_error(logits(base_of(dtype, "llama")), logits(model)) > 0.05


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, tmp_path: Path):
    config, dtype = RESUMED[name]

    def trainer(seed: int) -> Trainer:
        model = base_of(dtype)
        torch.manual_seed(seed)
        graft(model, config)
        return trainer_of(model, tmp_path, save_strategy="steps", save_steps=3)

    whole, resumed = trainer(2), trainer(3)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-5")
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    state = resumed.model.state_dict()
    assert [key for key, tensor in whole.model.state_dict().items() if not torch.equal(tensor, state[key])] == []


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = tiny_model()
    graft(model, LoraConfig(r=2))
    trainer = trainer_of(
        model,
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        greater_is_better=True,  # the worst one is the first, so that it is another than the last
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    first = tiny_model()
    load_adapter(first, tmp_path / "checkpoint-1")
    assert torch.equal(logits(model), logits(first))
    assert not [record for record in caplog.records if "missing keys" in record.message]


def test_resuming_with_another_rank_is_refused(tmp_path: Path):
    for rank in (2, 4):
        model = tiny_model()
        graft(model, LoraConfig(r=rank))
        trainer = trainer_of(model, tmp_path, save_steps=2)
        if rank == 2:
            trainer.train()
            continue
        with pytest.raises(TsugikiError, match=r"is \[2, 32\], expected \[4, 32\]"):
            trainer.train(resume_from_checkpoint=True)


def train_in_processes(folder: Path, dtype: str, rows_each: int, resume: bool = False) -> Any:
    """Train one row at a time, `rows_each` per step on each of the processes; what is returned can be pickled."""
    model = base_of(dtype, "llama")
    torch.manual_seed(2)
    graft(model, LoraConfig(r=2, lora_dropout=0.0))
    use_fast_paths(model)
    trainer = trainer_of(
        model,
        folder,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=rows_each,
        ddp_find_unused_parameters=False,
        save_steps=3,
    )
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return losses(trainer), {name: p.detach().numpy() for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize(
    "dtype", ["int8", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "bfloat16"))]
)
def test_two_processes_learn_and_keep_what_one_does(dtype: str, tmp_path: Path):
    one = train_in_processes(tmp_path / "one", dtype, 4)
    cpu = {"ACCELERATE_USE_CPU": "true"}
    both = run_function(train_in_processes, tmp_path / "two", dtype, 2, environment=cpu)
    again = run_function(train_in_processes, tmp_path / "two", dtype, 2, True, environment=cpu)
    for found_losses, found in both:
        assert found_losses == pytest.approx(one[0], abs=1e-5)
        for name, weight in one[1].items():
            assert found[name] == pytest.approx(weight, abs=1e-5), name
    assert [given[0] for given in again] == [given[0] for given in both]
    assert all((again[0][1][name] == weight).all() for name, weight in both[0][1].items())
    loaded = [base_of(dtype, "llama") for _ in range(2)]
    for model, folder in zip(loaded, ("one", "two"), strict=True):
        load_adapter(model, tmp_path / folder / "checkpoint-5")
    assert relative_error(*map(logits, loaded)) < 1e-5
    assert {path.name for path in (tmp_path / "two/checkpoint-5").iterdir()} >= FILES


DORA = LoraConfig(r=2, use_dora=True)


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        ("aot_eager", LoraConfig(r=2, target_modules="all-linear")),
        pytest.param("aot_eager", DORA, marks=pytest.mark.slow),
        pytest.param("inductor", LoraConfig(r=2, target_modules="all-linear"), marks=pytest.mark.slow),
        pytest.param("inductor", DORA, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_is_one_graph_with_the_same_gradients(backend: str, config: LoraConfig):
    model = tiny_model("llama", num_hidden_layers=1)
    graft(model, config)
    shake(model)
    found = []
    for call in (model, torch.compile(model, backend=backend, fullgraph=True)):
        model.zero_grad()
        call(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in trainable_parameters(model).items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_trainer_compiles_and_saves(tmp_path: Path):
    runs = []
    for compiled in (False, True):
        model = tiny_model("llama", num_hidden_layers=1)
        torch.manual_seed(2)
        graft(model, LoraConfig(r=2))
        folder = tmp_path / str(compiled)
        trainer = trainer_of(model, folder, torch_compile=compiled, torch_compile_backend="eager" if compiled else None)
        trainer.train()
        runs.append((losses(trainer), load_file(folder / "checkpoint-5/adapter_model.safetensors")))
    (ours, found), (theirs, wanted) = runs
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)


def sft(model: Any, folder: Path, **settings: Any) -> Any:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    arguments = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=2,
        logging_steps=1,
        bf16=False,
        **QUIET,
        **settings,
    )
    data = Dataset.from_dict({"input_ids": [row["input_ids"].tolist() for row in rows(8)]})
    return trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=byte_tokenizer())


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": False}], ids=["default", "no checkpointing"])
@pytest.mark.parametrize("fast", [True, False])
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


def test_trl_resumes_as_if_it_had_not_stopped(tmp_path: Path):
    pytest.importorskip("trl")
    runs = []
    for seed in (2, 3):
        model = tiny_model("llama", vocab_size=257)
        torch.manual_seed(seed)
        graft(model, LoraConfig(r=2, lora_dropout=0.1))
        trainer = sft(model, tmp_path, save_steps=1)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1") if runs else None)
        runs.append((losses(trainer), model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(tensor, runs[1][1][name]) for name, tensor in runs[0][1].items())


def test_a_grafted_weight_may_be_read_but_not_learned_past_its_pair():
    model = tiny_model("llama")
    graft(model, LoraConfig(r=2, target_modules=["lm_head"]))
    head, x = model.lm_head, torch.randn(3, 32)
    assert torch.equal(head.weight, head.base_layer.weight)
    with torch.no_grad():
        assert head.weight is head.base_layer.weight
    (head(x.to(head.weight.dtype)) ** 2).sum().backward()
    with pytest.raises(TsugikiError, match="would not train"):
        (x @ head.weight.T).sum().backward()


def test_trl_is_refused_a_grafted_head_that_it_would_not_train(tmp_path: Path):
    model = tiny_model("llama", vocab_size=257)
    graft(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    trainer = sft(model, tmp_path)
    with pytest.raises(TsugikiError, match=r"TRL.*\(lm_head, embed_out\)"):
        trainer.train()


def test_trl_trains_a_head_that_is_trained_whole(tmp_path: Path):
    model = tiny_model("llama", vocab_size=257)
    graft(model, LoraConfig(r=2, modules_to_save=["lm_head"]))
    before = model.lm_head.weight.detach().clone()
    sft(model, tmp_path).train()
    assert not torch.equal(model.lm_head.weight, before)


def test_stock_trainer_trains_a_grafted_model_in_place(tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    model = tiny_model(vocab_size=257)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = graft(model, LoraConfig(r=4))
    arguments = TrainingArguments(str(tmp_path), max_steps=3, learning_rate=1e-2, report_to=[])
    Trainer(model=model, args=arguments, train_dataset=uneven_blocks()).train()
    assert all(pair.B.any() for pair in adapter.pairs.values())
    ungraft(model)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
