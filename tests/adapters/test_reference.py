import copy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import trl_runs
from tests.errors import assert_refused, refused
from tests.tiny import grafted, logits, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    merge,
    mixed_batch,
    reference_model,
    ungraft,
    use_fast_paths,
)
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore")


def storages(model: Any) -> set[int]:
    tensors = chain(model.parameters(), model.buffers(), *(vars(module).values() for module in model.modules()))
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor)}


@pytest.mark.parametrize("dtype", ["float32", "int8", "nf4"])
def test_a_reference_shares_the_base_and_stays_what_the_model_was(dtype: str):
    model = tiny_model("llama", hidden_size=64, head_dim=16)
    if dtype != "float32":
        model = quantize(model, torch.float32, dtype)
    use_fast_paths(grafted(model, LoraConfig(r=2, lora_dropout=0.5)).train())
    before, trained = logits(model), sum(p.requires_grad for p in model.parameters())
    reference = reference_model(model)
    assert len(storages(reference) - storages(model)) == trained
    assert not [name for name, p in reference.named_parameters() if p.requires_grad]
    assert sum(p.requires_grad for p in model.parameters()) == trained
    shake(model, seed=7)
    assert torch.equal(logits(reference), before)
    assert not torch.equal(logits(model), before)
    assert not reference.training
    assert model.training


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(modules_to_save=["lm_head"], bias="all"),
        LoraConfig(trainable_token_indices=[3]),
        LoraConfig(use_dora=True, init_lora_weights="pissa"),
        METHODS["prompt-tuning"].configure({"num_virtual_tokens": 3}),
    ],
)
def test_a_reference_copies_whatever_trains(config: Any):
    model = grafted(tiny_model(), config)
    before, reference = logits(model), reference_model(model)
    shake(model, seed=7)
    assert torch.equal(logits(reference), before)


def test_without_the_adapter_the_reference_is_the_base():
    base = logits(tiny_model())
    model = grafted(tiny_model(), LoraConfig())
    with disable_adapter(model):
        reference = reference_model(model)
    assert torch.equal(logits(reference), base)
    assert not torch.equal(logits(model), base)


def test_a_model_that_has_no_state_of_its_own_has_no_reference():
    model = tiny_model()
    assert_refused("nothing is grafted", reference_model, model)
    grafted(model, LoraConfig())
    with mixed_batch(model, [None]), refused("mixed batch"):
        reference_model(model)
    assert_refused("unmerge", reference_model, merge(model))


EVERY = [(name, start) for name in trl_runs.TRAINERS for start in trl_runs.STARTS]
FAST = [("DPO", "merged"), ("DPO", "trained"), ("GRPO", "trained")]


@pytest.mark.parametrize(
    ("name", "start"), [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY]
)
def test_trainers_of_trl_learn_as_with_peft(name: str, start: str, tmp_path: Path):
    pytest.importorskip("trl")
    ours, theirs = trl_runs.both(name, start, tmp_path)
    assert len(ours) == trl_runs.STEPS
    for (loss, *norm_and_divergence), (wanted, *others) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(wanted, abs=1e-5)
        assert norm_and_divergence == pytest.approx(others, rel=1e-4, abs=1e-5)


def test_reference_log_probabilities_computed_before_are_the_same(tmp_path: Path):
    pytest.importorskip("trl")
    model = trl_runs.grafted_start("trained", tmp_path)
    wanted = trl_runs.steps(trl_runs.trainer_of("DPO", trl_runs.peft_start("trained", tmp_path), tmp_path / "peft"))
    for given in (reference_model(copy.deepcopy(model)), None):  # without one, TRL takes the model at its start
        again = copy.deepcopy(model)
        reference = None if given is None else reference_model(again)
        found = trl_runs.steps(
            trl_runs.trainer_of("DPO", again, tmp_path / "ours", reference, precompute_ref_log_probs=True)
        )
        assert found == [pytest.approx(step, abs=1e-5) for step in wanted]


@pytest.mark.parametrize("name", ["DPO", "GRPO"])
def test_another_reference_is_refused_at_the_first_step(name: str, tmp_path: Path):
    pytest.importorskip("trl")
    model = trl_runs.grafted_start("fresh", tmp_path)
    trainer = trl_runs.trainer_of(name, model, tmp_path / "out")
    assert trainer.ref_model is not None  # loaded from the files of the base
    assert_refused(f"{name}Trainer.*reference_model", trainer.train)
    assert trainer.state.global_step == 0
    for other in (copy.deepcopy(model), reference_model(copy.deepcopy(model))):
        trainer.ref_model = other
        assert_refused("reference_model", trainer.evaluate, trainer.train_dataset)
    reference = trainer.ref_model = reference_model(model)
    ungraft(model)
    graft(model, LoraConfig(r=4))
    assert_refused("reference_model", trainer.train)
    assert trainer.ref_model is reference


def test_what_would_change_the_base_or_confuse_vllm_is_refused(tmp_path: Path):
    pytest.importorskip("trl")
    model = trl_runs.grafted_start("fresh", tmp_path)
    trainer = trl_runs.trainer_of("DPO", model, tmp_path / "out", reference_model(model), sync_ref_model=True)
    assert_refused("sync_ref_model", trainer.train)
    trainer = trl_runs.grafted_trainer("GRPO", model, tmp_path / "out")
    trainer.use_vllm = True
    assert_refused("use_vllm", trainer.train)
