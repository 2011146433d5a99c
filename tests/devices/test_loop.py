"""Optimiser steps of the training loop on the pretended device: the results of the processor, with one wait a step."""

import math
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.devices.pretend import NAME, PretendedDevice, on_host
from tests.devices.test_training import moved
from tests.runs import run_config, uneven_blocks
from tests.tiny import tiny_model
from tsugiki import LoraConfig, TsugikiError, graft
from tsugiki.data import Collator, StepBatches
from tsugiki.fast import detect_document_masking, use_fast_paths
from tsugiki.lora import trainable_parameters
from tsugiki.model import disable_dropout, replica_in
from tsugiki.training import Gradients, readings, with_values
from tsugiki.training.prepare_loop import prepare_loop


def copied(source: Any, target: Any) -> Any:
    """Copy the values of all parameters, and return the target."""
    with torch.no_grad():
        values = dict(source.named_parameters())
        for name, parameter in target.named_parameters():
            parameter.copy_(values[name])
    return target


def models(kind: str, method: str, dropout: float = 0.0, base_dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same prepared model on the processor and on the device, which draw different dropout masks."""
    host = tiny_model(kind, vocab_size=257).to(base_dtype)
    disable_dropout(host)
    there = moved(host)
    if method == "lora":
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)
        for model in (host, there):
            torch.manual_seed(0)
            graft(model, config)
        copied(host, there)
    return host, there


def gradients_of(model: Any, device: str, computing: Any = None, rows: int | None = None) -> Gradients:
    computing = computing or model
    use_fast_paths(computing)
    batches = StepBatches(uneven_blocks(), Collator(detect_document_masking(model), computing.dtype), 8, seed=1)
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=1, process_index=0)
    return Gradients(model, computing, batches, accelerator, rows)


@pytest.mark.parametrize("method", ["lora", "full", "full in bf16"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_a_step_has_the_gradients_of_the_processor(kind: str, method: str, device: PretendedDevice):
    host, there = models(kind, method)
    bf16 = method.endswith("bf16")
    replica = replica_in(torch.bfloat16, host) if bf16 else None
    found = gradients_of(there, NAME, moved(replica) if bf16 else None)
    expected = gradients_of(host, "cpu", replica, rows=2)
    wanted = expected.step(0)
    found.step(0)
    device.reset()
    results = found.step(0)
    assert device.waits.total() == 0, device.waits
    tolerance = 3e-2 if bf16 else 2e-5
    torch.testing.assert_close(on_host(results), wanted, rtol=tolerance, atol=0)
    names = trainable_parameters(host)
    for name, parameter in trainable_parameters(there).items():
        gradient = names[name].grad
        assert (on_host(parameter.grad) - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name


class Activations:
    """What a failed micro-batch holds."""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 MB)"),
        RuntimeError("Invalid buffer size: 20.00 GiB"),
    ],
)
def test_a_micro_batch_that_does_not_fit_is_computed_in_halves(error: RuntimeError, device: PretendedDevice):
    host, there = models("llama", "lora")
    expected, found = gradients_of(host, "cpu", rows=1), gradients_of(there, NAME)
    whole = found._micro_batch
    sizes: list[int] = []
    held: list[weakref.ref[Activations]] = []

    def limited(step: int, count: int, micro: Any) -> Any:
        sizes.append(len(micro.rows))
        if len(micro.rows) > 3:
            activations = Activations()
            held.append(weakref.ref(activations))
            raise type(error)(*error.args)
        return whole(step, count, micro)

    def empty_cache() -> None:
        assert all(activations() is None for activations in held), "the traceback still holds them"

    found._micro_batch = limited  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(empty_cache=empty_cache))
        results = found.step(0)
    assert sizes == [8, 4, 2, 2, 2, 2]
    torch.testing.assert_close(on_host(results), expected.step(0), rtol=2e-5, atol=0)
    found.sharded = True
    with pytest.raises(TsugikiError, match="8 rows.*--micro-batch-size to 4"):
        found._halve(SimpleNamespace(rows=[0] * 8), torch.OutOfMemoryError())  # type: ignore[arg-type]
    found.sharded = False
    found._micro_batch = lambda *_: 1 / 0 and None  # type: ignore[method-assign,assignment]
    with pytest.raises(ZeroDivisionError):
        found.step(0)
    found._micro_batch = limited  # type: ignore[method-assign]
    sizes.clear()
    found.step(1)
    assert sizes == [2, 2, 2, 2], "the size is kept"


def test_the_size_of_micro_batches_does_not_change_dropout(device: PretendedDevice):
    _, model = models("llama", "lora", dropout=0.5)
    alone, pairs, all_rows = (gradients_of(model, NAME, rows=rows) for rows in (1, 2, None))
    wanted = on_host(alone.step(0))
    for found in (pairs, all_rows):
        torch.testing.assert_close(on_host(found.step(0)), wanted, rtol=2e-5, atol=0)
    assert not torch.allclose(on_host(alone.step(1)), wanted)


def test_masks_of_more_rows_take_no_more_operations(device: PretendedDevice):
    added = []
    for rows in (2, 8):
        counts = []
        for dropout in (0.0, 0.1):
            _, model = models("llama", "lora", dropout=dropout)
            found = gradients_of(model, NAME)
            found.step(0)
            micro = found._share(1)[0]
            micro = replace(micro, places=micro.places[:rows], rows=micro.rows[:rows])
            device.reset()
            found._micro_batch(1, 100, micro)
            counts.append(device.operations)
        added.append(counts[1] - counts[0])
    assert added[0] == added[1]


def test_a_run_waits_for_the_device_only_where_losses_are_read(
    tmp_path: Path, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
):
    """The first step and its doubles (1, 3, 7) until some seconds lie between them, and the last step."""
    _, model = models("llama", "lora", dropout=0.1)
    use_fast_paths(model)
    accelerator: Any = SimpleNamespace(
        device=torch.device(NAME), num_processes=1, process_index=0, is_main_process=True, log=lambda *_, **__: None
    )
    config = with_values(run_config(tmp_path), batch_size=4, learning_rate=1e-3, max_steps=9, save_steps=100)
    training = prepare_loop(accelerator, config, model, uneven_blocks(), detect_document_masking(model))
    training.log_steps = 100
    monkeypatch.setattr(readings, "_SECONDS_BETWEEN", 1000)
    read: list[int] = []
    losses = training.read_losses
    monkeypatch.setattr(training, "read_losses", lambda: read.append(training.progress.step) or losses())
    device.reset()
    training.run()
    assert sorted(set(read)) == [1, 3, 7, 9]
    assert device.waits.total() == 4, device.waits
    assert training.progress.tokens > 0
    assert math.isfinite(training.progress.loss)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_in_float16_waits_once(method: str, device: PretendedDevice):
    device.float64 = True  # which GradScaler uses except on MPS
    host, there = models("llama", method, base_dtype=torch.float32 if method == "full" else torch.float16)
    computing = moved(replica_in(torch.float16, host)) if method == "full" else None
    found, expected = gradients_of(there, NAME, computing), gradients_of(host, "cpu", rows=2)
    found.step(0)
    device.reset()
    results = found.step(0)
    assert device.waits.total() == 0, device.waits
    torch.testing.assert_close(on_host(results), expected.step(0), rtol=2e-3, atol=0)
    optimizer = torch.optim.SGD(found.weights, 1e-2)
    before = [on_host(weight).clone() for weight in found.weights]
    found.scaler.unscale_(optimizer)
    found.scaler.step(optimizer)
    found.scaler.update()
    assert device.waits.total() <= 1, device.waits
    assert not all(torch.equal(on_host(weight), old) for weight, old in zip(found.weights, before, strict=True))
