"""Plans: the bytes of weights, compared with the loaded model, what is chosen, and what a run does with it."""

import gc
import weakref
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.errors import refused
from tests.runs import interrupt, run_config
from tests.tiny import save_tiny
from tests.tiny_types import lively_model
from tsugiki.base import load_meta_model, load_model
from tsugiki.dtypes import BaseDtype
from tsugiki.training import (
    Measured,
    MemoryPlan,
    Need,
    RunConfig,
    base_bytes,
    find_shapes,
    fitted,
    load_dtype,
    loading_bytes,
    measure_blocks,
    plan_memory,
    plan_run,
    read_record,
    sample_model,
    train,
)
from tsugiki.training.measure import facts, memory_plan
from tsugiki.training.measure.cost import kernel_bytes, need_of, prepare_sample
from tsugiki.training.run import plan
from tsugiki.training.tools import memory


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("gpt2", "fp32"),
        ("llama", "bf16"),
        ("gemma3_text", "int8"),
        ("phi", "nf4"),
        ("gpt2", "nf4-int8"),
    ],
)
def test_the_bytes_of_a_base_are_those_of_the_loaded_one(kind: str, dtype: Any, tmp_path: Path):
    folder = save_tiny(tmp_path, kind)
    loaded = {id(p): p.numel() * p.element_size() for p in load_model(folder, dtype).parameters()}
    assert base_bytes(load_meta_model(folder), dtype) == sum(loaded.values())


@pytest.mark.parametrize(("kind", "dtype"), [("gpt2", "fp32"), ("gemma3_text", "int8"), ("gpt2", "nf4")])
def test_a_sample_has_the_shapes_and_dtypes_of_the_first_blocks(kind: str, dtype: Any, tmp_path: Path):
    folder = save_tiny(tmp_path, kind, num_hidden_layers=2)
    whole = load_model(folder, dtype).named_parameters()
    blocks = {name: (p.shape, p.dtype) for name, p in whole if ".0." in name}
    sample = dict(sample_model(load_meta_model(folder).config, 1, dtype).named_parameters())
    assert blocks
    assert {name: (sample[name].shape, sample[name].dtype) for name in blocks} == blocks
    assert not any(".1." in name for name in sample)


@pytest.mark.parametrize("dtype", ["bf16", "nf4-int8"])
def test_a_sample_may_have_fewer_words_than_the_model(dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.measure.cost._WORDS", 100)
    found = plan_run(run_config(tmp_path, micro_batch_size=1), None, base_dtypes=(dtype,))
    assert {option.base_dtype for option in found.options} == {dtype}


def measured_sample(config: RunConfig, shapes: Any, rows: int) -> tuple[Any, Measured]:
    """A prepared sample of two blocks, and what rows of 32 tokens need in it."""
    model, processor = sample_model(shapes, 2, "fp32"), torch.device("cpu")
    prepare_sample(model, config, processor, processor)
    return model, measure_blocks(model, processor, rows, 32, 1, 257, timed=True)


def test_what_is_measured_grows_with_the_rows(tmp_path: Path):
    config = run_config(tmp_path, base_dtype="fp32")
    one, two = (measured_sample(config, load_meta_model(config.model).config, rows)[1] for rows in (1, 2))
    assert one.input == 32 * 32 * 4
    assert two.kept == pytest.approx(2 * one.kept, rel=0.1)
    assert min(one.forward, one.backward) > 0


def test_a_measured_sample_is_freed(tmp_path: Path):
    config = run_config(tmp_path, base_dtype="fp32")
    model, _ = measured_sample(config, lively_model("qwen3_moe").config, 1)
    weights = [weakref.ref(weight) for weight in model.parameters()]
    del model
    gc.collect()
    assert not [weight() for weight in weights if weight() is not None]


def test_the_parts_of_a_full_run_are_those_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def parts(**changes: Any) -> dict[str, int]:
        config = run_config(tmp_path, method="full", recompute="none", micro_batch_size=1, **changes)
        found = plan_run(config, rows=10)
        assert found.trainable == found.parameters
        return found.parts | {"parameters": 4 * found.parameters}

    exact, rounded = parts(compute_dtype="fp32"), parts(compute_dtype="bf16")
    assert (exact["base"], rounded["base"]) == (0, exact["parameters"] // 2), "a copy computes in 16 bits only"
    assert exact["adapter"] == 2 * exact["parameters"], "a narrow model keeps a copy of its start"
    monkeypatch.setattr("tsugiki.training.measure.cost.NARROW", 1)
    assert parts(compute_dtype="fp32")["adapter"] == exact["parameters"]


def _need(**changes: Any) -> Need:
    measured = Measured(kept=100, input=1, transient=10, forward=1.0, backward=2.0, loss=0.5)
    values = {"parameters": 50, "trainable": 5, "blocks": 4, "base": 1000, "loading": 0, "process": 0, "loss": 7}
    return Need(**{**values, "threads": 2, "measured": measured, **changes})


def test_as_many_blocks_are_recomputed_as_needed():
    need = _need()
    peaks = [need.peak(count) for count in range(5)]
    assert peaks[4] > peaks[3], "the last block is needed first, so nothing is gained"
    assert peaks[0] - peaks[1] == 2 * 99
    assert [need.recomputed(peak) for peak in peaks[:3]] == [0, 1, 2]
    assert need.recomputed(0) == 4
    large = _need(loading=10_000)
    assert large.peak(0) == large.parts(0)["process"] + 1000 + 10_000
    # An output head that may train is planned like what trains.
    assert _need(trainable=70, head=30).peak(0) == _need(trainable=100).peak(0)


def test_options_and_the_chosen_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = run_config(tmp_path, learning_rate="auto")
    found = plan_run(config, rows=10, base_dtypes=("fp32", "nf4"))
    kinds = {(option.base_dtype, option.micro_batch_size, option.recompute) for option in found.options}
    assert kinds == {*product(("fp32", "nf4"), (1, 2), ("none", "blocks"))}
    chosen = found.options[0]
    assert (chosen.fits, chosen.base_dtype, found.steps) == (True, "fp32", 4)
    assert chosen.seconds == pytest.approx(4 * chosen.step_seconds)
    assert chosen.peak_memory == sum(found.parts.values()) - found.parts["loading"]
    assert found.file_bytes >= 4 * found.parameters
    # The whole effective batch stays.
    settings = fitted(config, found)
    assert (settings.batch_size, settings.base_dtype) == (config.batch_size, chosen.base_dtype)
    # 4 bits are taken only where nothing else fits.
    only = [replace(option, fits=option.base_dtype == "nf4") for option in found.options]
    assert plan._ordered(only)[0].base_dtype == "nf4"
    nothing = replace(found, options=tuple(replace(option, fits=False) for option in found.options))
    with refused(r"does not fit .* GB"):
        fitted(config, nothing)
    monkeypatch.setattr(memory, "available", lambda device: 1)
    one = config.model_copy(update={"micro_batch_size": 1})
    assert not any(option.fits for option in plan_run(one, None, base_dtypes=("fp32",)).options)


def shapes_of(config: RunConfig) -> Any:
    return find_shapes(config.model, config.block_size, config.virtual_tokens)


def planned_memory(config: RunConfig) -> MemoryPlan | None:
    return plan_memory(config, shapes_of(config), load_dtype(config), None, 0)


def test_a_run_notes_and_follows_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    settings: dict[str, Any] = {"prompts": [], "recompute": "auto", "max_steps": 2}
    config = run_config(tmp_path, **settings)
    assert train(config.model_copy(update={"max_steps": 1})).planned_memory is None  # too small
    monkeypatch.setattr(facts, "SMALL_MODEL", 0)
    monkeypatch.setattr(memory_plan, "_SURELY_ENOUGH", 0)
    planned = planned_memory(config)
    assert (planned.recomputed_blocks, planned.fits) == (0, True)
    record = train(config, overwrite=True)
    assert record.planned_memory == pytest.approx(planned.peak, rel=0.5)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    tight = planned_memory(config)
    assert (tight.recomputed_blocks, tight.fits) == (2, False)
    again = train(run_config(tmp_path, "tight", **settings))
    assert [point.loss for point in again.loss_curve] == [point.loss for point in record.loss_curve]
    assert "memory: this run needs about" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_bound_from_the_shapes_is_above_the_plan(dtype: BaseDtype, tmp_path: Path):
    config = run_config(tmp_path, model="embedded", block_size=512, lora={"r": 16})
    shapes = shapes_of(config)
    need = need_of(config, shapes, dtype, torch.device("cpu"), 1, 2)
    assert need.peak(0) - need.process <= memory_plan.most_bytes(shapes, 16, need.threads, 1)


def test_a_run_that_surely_has_enough_memory_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_plan, "_PROCESS", 0)
    monkeypatch.setattr(memory, "resident", lambda device: 0)
    config = run_config(tmp_path, recompute="auto", micro_batch_size=1)
    most = memory_plan.most_bytes(shapes_of(config), 16, torch.get_num_threads(), 1)
    for available, is_planned in ((most, True), (2 * most, False)):
        monkeypatch.setattr(memory, "available", lambda device, available=available: available)
        assert (planned_memory(config) is not None) == is_planned


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_recomputes_as_many_blocks_as_before(method: str, tmp_path: Path):
    given = run_config(tmp_path, method=method, prompts=[], recompute="blocks", micro_batch_size=1, save_steps=1)
    interrupt(train, given, 1)
    plain = run_config(tmp_path, method=method, prompts=[], save_steps=1)
    interrupt(lambda config: train(config, resume=True), plain, 2)
    record = read_record(tmp_path / "run")
    assert (record.recomputed_blocks, record.micro_batch_size) == (2, 1)
    record = train(plain.model_copy(update={"recompute": "none", "micro_batch_size": 2}), resume=True)
    assert (record.recomputed_blocks, record.micro_batch_size) == (0, 2)
    uninterrupted = train(plain.model_copy(update={"out": str(tmp_path / "plain")}))
    for one, other in zip(record.loss_curve, uninterrupted.loss_curve, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)


def test_a_model_whose_blocks_cannot_be_measured_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation")

    monkeypatch.setattr("tsugiki.training.measure.cost.sample_model", fail)
    with refused("no such operation"):
        plan_run(run_config(tmp_path), None, base_dtypes=("fp32",))


def test_a_step_is_its_blocks_and_its_loss():
    need = _need()
    assert plan._step_seconds(need, 1, 2, 0) == 4 * 3 + 0.5
    assert plan._step_seconds(need, 1, 2, 3) == 4 * 3 + 3 * 1 + 0.5
    assert plan._step_seconds(need, 1, 5, 0) == 3 * (4 * 3 + 0.5), "two threads compute five rows in three rounds"


@pytest.mark.parametrize(("tied", "largest"), [(True, 64 * 96), (False, 512 * 64)])
def test_an_embedding_needs_nothing_more_while_it_is_loaded_but_a_head_to_quantise_does(tied: bool, largest: int):
    model = tiny_base("llama", hidden_size=64, intermediate_size=96, vocab_size=512, tie_word_embeddings=tied)
    assert loading_bytes(model, "int8") == loading_bytes(model, "nf4-int8") == 4 * largest
    assert loading_bytes(model, "nf4") == 4 * 64 * 96, "the head keeps 16 bits"
    assert loading_bytes(model, "bf16") == 4 * 512 * 64


def test_a_gguf_file_is_planned_in_all_dtypes(tmp_path: Path):
    base = tiny_base("llama", hidden_size=64, intermediate_size=96)
    path = write_gguf(tmp_path / "tiny.gguf", base, Kind.Q4_0)
    found = plan_run(run_config(tmp_path, model=str(path), micro_batch_size=1), None)
    assert {option.base_dtype for option in found.options} >= {"int8", "nf4"}


def test_stacked_experts_are_loaded_by_transformers():
    model = lively_model("mixtral").bfloat16()
    size = sum(weight.nbytes for weight in model.parameters())
    assert loading_bytes(model, "bf16") == size
    kernels = [kernel_bytes(model, tokens, itemsize=2) for tokens in (32, 512, 1024, 2048)]
    assert kernels[0] < kernels[1] < kernels[2]
    assert kernels[2] - kernels[1] == kernels[3] - kernels[2], "as many more each time that the rows double"
    assert kernel_bytes(tiny_base("llama"), 512, itemsize=2) < kernels[0]
    assert kernel_bytes(model, 512, itemsize=4) == 0
