"""Runs from end to end on a tiny model: against a plain loop, resumed, repeated, and against bad input."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tests.runs import assert_resumes, run_config, tiny_base
from tests.tiny import TEXT, byte_tokenizer, logits, save_tiny, store_of, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, load_adapter, trainable_parameters, ungraft
from tsugiki.data.blocks import Blocks, pack
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.labels import IGNORE_INDEX
from tsugiki.train.checkpoint import checkpoints
from tsugiki.train.config import RunConfig
from tsugiki.train.run import CHECKPOINTS, build_trainer, train
from tsugiki.train.workflows.preview import rows_in_order


def settings(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    return run_config(folder, out, **{"max_steps": 6, "grad_accum": 2, "sample_tokens": 8, **changes})


def uneven_blocks() -> Blocks:
    """Sixteen rows that hold different numbers of learned tokens."""
    ids = byte_tokenizer()(TEXT, add_special_tokens=False).input_ids
    rows = [ids[row * 20 : row * 20 + 20] for row in range(16)]
    return pack(store_of(rows, prompts={row: 2 + row for row in range(16)}), np.arange(16), 20, pad=0)


def train_blocks(kind: str, blocks: Blocks, out: Path, batch_size: int, grad_accum: int, seed: int = 0) -> Any:
    model = tiny_model(kind, vocab_size=257)
    torch.manual_seed(seed)
    graft(model, LoraConfig(r=4, lora_alpha=8))
    config = RunConfig(
        model="-", data="-", out=str(out), epochs=2, batch_size=batch_size, grad_accum=grad_accum, learning_rate=1e-2
    )
    trainer = build_trainer(config, model, byte_tokenizer(), blocks, detect_document_masking(model))
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "opt", "bloom"])
def test_batch_8_is_accumulation_8_also_with_uneven_rows(kind: str, tmp_path: Path):
    blocks = uneven_blocks()
    wide, together = train_blocks(kind, blocks, tmp_path / "a", 8, 1)
    narrow, apart = train_blocks(kind, blocks, tmp_path / "b", 1, 8)
    assert together.meters.tokens == apart.meters.tokens == 2 * blocks.target_tokens
    assert together.meters.nll == pytest.approx(apart.meters.nll, rel=1e-5)
    for (name, a), (_, b) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_the_run_is_a_plain_loop_with_adamw_and_token_weighted_loss(tmp_path: Path):
    blocks = uneven_blocks()
    ours, trainer = train_blocks("gpt2", blocks, tmp_path / "run", 2, 2, seed=7)

    order: list[int] = []
    probe = [{"input_ids": torch.tensor([row]), "position_ids": torch.tensor([0])} for row in range(16)]
    for epoch in range(2):
        loader = trainer._get_dataloader(probe, "order", 2, sampler_fn=trainer._get_train_sampler, is_training=True)
        loader.set_epoch(epoch)
        order += [int(row[0]) for batch in loader for row in batch["input_ids"]]
    assert sorted(order) == sorted([*range(16), *range(16)])
    assert rows_in_order(trainer, 10) == order[:10]

    # PEFT's layer, one loop, no Trainer: mean over the learned tokens of the step, AdamW, linear decay.
    theirs = tiny_model("gpt2", vocab_size=257)
    torch.manual_seed(7)
    graft(theirs, LoraConfig(r=4, lora_alpha=8))
    trained = list(trainable_parameters(theirs).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for step in range(8):
        rows = order[step * 4 : step * 4 + 4]
        ids, labels = (torch.stack([blocks[row][name] for row in rows]) for name in ("input_ids", "labels"))
        loss = F.cross_entropy(
            theirs(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (8 - step) / 8
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


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


def test_a_run_leaves_an_adapter_that_peft_loads_and_a_record(tmp_path: Path):
    out = tmp_path / "run"
    record = train(settings(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    before = logits(model)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path)), out).eval()
    load_adapter(model, out)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(model), before, atol=1e-3)

    stored = json.loads((out / "run.json").read_text())
    assert stored["status"] == record.status == "finished"
    assert stored["evaluations"][0]["step"] == 0
    assert stored["evaluations"][-1]["step"] == 6
    assert stored["evaluations"][-1]["loss"] < stored["evaluations"][0]["loss"]
    assert [sample["step"] for sample in stored["samples"]] == [0, 3, 6]
    assert 6 * 4 * 31 * 0.8 < stored["training"]["tokens"] <= 6 * 4 * 31  # some rows end in padding
    assert stored["training"]["loss"] == pytest.approx(
        sum(entry["loss"] for entry in stored["loss_curve"]) / 6, rel=1e-3
    )
    assert stored["base"]["fingerprint"].startswith("sha256:")
    assert stored["data"]["train"]["documents"] == 3
    assert stored["parameters"]["trainable"] == sum(t.numel() for t in load_file(out / ADAPTER_FILE).values())
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not list(out.rglob("*.part"))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(settings(tmp_path, name, seed=seed))
    one, two, other = ((tmp_path / name / ADAPTER_FILE).read_bytes() for name in "abc")
    assert one == two
    assert one != other


def test_looking_at_a_run_does_not_change_it(tmp_path: Path):
    train(settings(tmp_path, "watched", eval_steps=1))
    train(settings(tmp_path, "unwatched", eval_steps=6, prompts=[]))
    assert (tmp_path / "watched" / ADAPTER_FILE).read_bytes() == (tmp_path / "unwatched" / ADAPTER_FILE).read_bytes()


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_run_gives_the_same_bytes(cut: int, tmp_path: Path):
    # An epoch is about five steps: the run crosses into a second one.
    assert_resumes(train, settings(tmp_path, max_steps=8), cut)


def test_a_checkpoint_is_an_adapter_folder(tmp_path: Path):
    train(settings(tmp_path))
    last = checkpoints(tmp_path / "run" / CHECKPOINTS)[-1]
    model = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    load_adapter(model, last)
    assert (last / ADAPTER_FILE).read_bytes() == (tmp_path / "run" / ADAPTER_FILE).read_bytes()


def test_other_settings_are_not_resumed(tmp_path: Path):
    config = settings(tmp_path)
    train(config)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(TsugikiError, match=r"other settings: learning_rate .was 0.01, now 0.1"):
        train(config.model_copy(update={"learning_rate": 0.1}), resume=True)
    with pytest.raises(TsugikiError, match="holds no run"):
        train(settings(tmp_path, "new"), resume=True)
    (tmp_path / "texts" / "4.txt").write_text(TEXT[:300])
    with pytest.raises(TsugikiError, match="has changed since"):
        train(config, resume=True)


def test_the_number_of_steps_is_foretold(tmp_path: Path):
    for epochs in (0.3, 2):
        record = train(settings(tmp_path, str(epochs), max_steps=None, epochs=epochs, prompts=[]))
        assert record.resolved_settings["steps"] == record.training.steps == record.loss_curve[-1].step
    assert record.training.tokens == 2 * record.data.target_tokens_per_epoch


def test_another_base_under_the_adapter_is_refused(tmp_path: Path):
    train(settings(tmp_path))
    other = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "other", seed=1))
    with pytest.raises(TsugikiError, match="another base"):
        load_adapter(other, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    with pytest.raises(TsugikiError, match=r"the loss is (nan|inf) at step \d+: lower the learning rate"):
        train(settings(tmp_path, learning_rate=1e30, max_grad_norm=0, save_steps=100))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out": "nowhere.txt"}, "no data at nowhere.txt"),
        ({"data": "nowhere"}, "no data at nowhere"),
        ({"block_size": 65}, "block_size is 65, but the model's context is 64"),
        ({"model": "./nowhere"}, "no model at './nowhere'"),
        ({"lora": {"target_modules": ["q_proj"]}}, "matches no layer; these can be grafted"),
        ({"lr_scheduler_type": "sideways"}, "sideways"),
        ({"report_to": ["no-such-logger"]}, "no-such-logger"),
    ],
)
def test_bad_input_leaves_nothing_behind(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match=said):
        train(settings(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_too_little_text(tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_text("雨")
    with pytest.raises(TsugikiError, match="too short"):
        train(settings(tmp_path, data=str(path)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rate": -1.0}, "learning_rate: input should be greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate: input should be a finite number"),
        ({"learning_rate": math.inf}, "learning_rate: input should be a finite number"),
        ({"epochs": 0}, "epochs: input should be greater than 0"),
        ({"lora": {"r": 0}}, "r is 0"),
        ({"lora": {"rank": 4}}, "rank: no such setting"),
        ({"method": "lola"}, "method: no such method; did you mean lora?"),
        ({"method": "dora", "lora": {"use_dora": False}}, "use_dora is True in this method"),
        ({"method": "houlsby", "method_config": {"mh_adapter": False}}, "mh_adapter is True in this method"),
        ({"lora": {"freeze_B": True}}, "freeze_A"),
        ({"banana": 1}, "banana: extra inputs are not permitted"),
        ({"batch_size": "many"}, "batch_size"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], said: str, tmp_path: Path):
    from tsugiki.train.config import load_config

    with pytest.raises(TsugikiError) as caught:
        load_config(None, {"model": "m", "data": "d", "out": "o", **fields})
    assert said in str(caught.value)


def test_yaml_and_flags(tmp_path: Path):
    from tsugiki.train.config import load_config

    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\nout: o\nlora: {r: 4}\nepochs: 2\n")
    config = load_config(path, {"epochs": 5, "lora": {"lora_alpha": 16}})
    assert (config.epochs, config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (5, 4, 16, 0.1)
    chapter = load_config(None, {"model": "m", "data": "d", "out": "o"})
    assert (chapter.epochs, chapter.batch_size, chapter.grad_accum, chapter.learning_rate) == (3, 4, 4, 1e-4)
    assert (chapter.lora.r, chapter.lora.lora_alpha, chapter.lora.lora_dropout) == (8, 32, 0.1)
    for content, said in (
        ("[1]", "holds no settings"),
        ("a: [", "is not YAML"),
        ("lora: 5", "lora is 5"),
        ("model: m", "data: field required"),
    ):
        path.write_text(content)
        with pytest.raises(TsugikiError, match=said):
            load_config(path, {})


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 1e-4),
        ({"method": "full"}, 1e-4),
        ({"method": "ia3"}, 3e-3),
        ({"method": "ia3", "learning_rate": 1e-4}, 1e-4),
        ({"method": "prompt-tuning"}, 3e-2),
    ],
)
def test_a_method_has_a_learning_rate_of_its_own_where_none_is_said(given: dict[str, Any], rate: float):
    from tsugiki.train.config import load_config

    assert load_config(None, {"model": "m", "data": "d", "out": "o", **given}).learning_rate == rate
