"""Grafted models in the trainers of others: transformers' Trainer, and TRL's where it is installed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, default_data_collator

from tests.runs import uneven_blocks
from tests.tiny import byte_tokenizer, ids, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, save_adapter, trainable_parameters, ungraft, use_fast_paths
from tsugiki.fast import forward

QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "use_cpu": True, "save_strategy": "no"}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Of which each has its own number of learned tokens."""
    found = []
    for row, tokens in enumerate(ids(rows=count, length=16)):
        labels = tokens.clone()
        labels[: row % 9] = -100
        found.append({"input_ids": tokens, "labels": labels})
    return found


def trainer_of(model: Any, folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=5,
        learning_rate=1e-3,
        logging_steps=1,
        **QUIET,
        **settings,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(20),
        eval_dataset=rows(4),
        data_collator=default_data_collator,
    )


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
    peft = pytest.importorskip("peft")
    model = tiny_model("llama", vocab_size=257)
    torch.manual_seed(2)
    graft(model, LoraConfig(r=2, lora_dropout=0.0))
    before = {name: weight.detach().clone() for name, weight in trainable_parameters(model).items()}
    save_adapter(model, tmp_path / "adapter")
    if fast:
        use_fast_paths(model)
    ours = sft(model, tmp_path, **settings)
    ours.train()
    assert all(not torch.equal(weight, before[name]) for name, weight in trainable_parameters(model).items())

    base = tiny_model("llama", vocab_size=257)
    theirs = sft(peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True), tmp_path, **settings)
    theirs.train()
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-5)
    save_adapter(model, tmp_path / "ours")
    theirs.model.save_pretrained(str(tmp_path / "theirs"))
    found, wanted = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
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
    arguments = TrainingArguments(str(tmp_path), max_steps=3, learning_rate=1e-2, save_strategy="no", report_to=[])
    Trainer(model=model, args=arguments, train_dataset=uneven_blocks()).train()
    assert all(pair.B.any() for pair in adapter.pairs.values())
    ungraft(model)
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters())
