"""Training on a pretended accelerator: the results of the processor, tensors on the right device, and few waits."""

import copy
import math
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.devices.pretend import NAME, PretendedDevice, on_host
from tests.methods.test_table import NEEDED, SMALL
from tests.runs import loop_of, run_config, uneven_blocks
from tests.tiny import grafted, ids, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.data import Collator, StepBatches
from tsugiki.fast import AnswerTokens, answer_log_probabilities, detect_document_masking, packed_masks, use_fast_paths
from tsugiki.lora import LoraLinear, grafted_layers, trainable_parameters
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS
from tsugiki.model import disable_dropout, is_quantized, replica_in
from tsugiki.training import Gradients
from tsugiki.training.step import loop

LENGTH = 24
ADAPTERS = [name for name, method in METHODS.items() if method.trains_adapter]
# The loss of packed rows, in which transformers looks for the documents itself, which costs a wait.
POSITIONS = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)]).expand(2, -1)


def batch_of(device: str = "cpu") -> dict[str, Tensor]:
    """Two packed rows of two documents, of whose tokens some are not targets."""
    tokens = ids(2, LENGTH)
    labels = tokens.masked_fill(torch.arange(LENGTH) % 5 == 0, -100)
    batch = {"input_ids": tokens, "labels": labels, "position_ids": POSITIONS.clone()}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def base_model(kind: str, dtype: str, **options: Any) -> Any:
    model = tiny_model(kind, **options)
    return quantize(model, torch.float32) if dtype == "int8" else model.to(getattr(torch, dtype))


def moved(model: Any) -> Any:
    """Return a copy of the model on the device. Moving it replaces its parameters, and so unties them."""
    model = copy.deepcopy(model).to(NAME)
    if not is_quantized(model.get_output_embeddings()):
        model.tie_weights()
    return model


def set_paths(model: Any, fast: bool) -> None:
    if fast:
        use_fast_paths(model)
    for layer in grafted_layers(model).values():
        if isinstance(layer, LoraLinear):
            layer.fused = fast


def gradients(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run forward and backward in training mode; return the loss and the gradients of what trains, on the host."""
    model.train()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return on_host(loss.detach()), {name: on_host(p.grad) for name, p in trained.items() if p.grad is not None}


def check(
    device: PretendedDevice, base: Any, config: Any, fast: bool, tolerance: float = 2e-5, masks: bool = False
) -> None:
    """Train one step on the device and compare it with one of the same adapter on the processor.

    Args:
        device: the device.
        base: the base model, on the processor.
        config: of the adapter.
        fast: whether to use the fast paths.
        tolerance: of loss and gradients, relative.
        masks: pass masks of the documents; otherwise the model makes them from the position ids, and waits.
    """
    there, host = moved(base), grafted(base, config)
    torch.manual_seed(0)
    graft(there, config).load_state_dict(host.state_dict())
    set_paths(there, fast)
    batch = batch_of(NAME)
    device.reset()
    if masks:
        batch["attention_mask"] = packed_masks(there.base_model, batch["position_ids"])
    loss, found = gradients(there, batch)
    assert device.waits.total() <= (not masks), device.waits
    set_paths(host, fast)
    expected_loss, expected = gradients(host, batch_of())
    assert found.keys() == expected.keys() != set()
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.mark.filterwarnings("ignore:lm_head shares")
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_step_of_every_method(name: str, device: PretendedDevice):
    method = METHODS[name]
    lora = {"r": 4, "target_modules": "all-linear"} if method.family == "reparametrised" else {}
    config = method.configure({**lora, **NEEDED.get(name, {}), **SMALL.get(name, {})})
    check(device, base_model("gpt2", "float32"), config, fast=True)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "options", "fast"),
    [
        ("bfloat16", 0.1, {}, False),
        ("bfloat16", 0.1, {"use_dora": True}, True),
        ("int8", 1e-2, {}, True),
        ("int8", 1e-2, {"init_lora_weights": "pissa"}, False),
    ],
)
def test_a_base_of_fewer_bits(
    dtype: str, tolerance: float, options: dict[str, Any], fast: bool, device: PretendedDevice
):
    config = LoraConfig(r=4, target_modules="all-linear", **options)
    check(device, base_model("llama", dtype), config, fast, tolerance)


@pytest.mark.filterwarnings("ignore:lm_head shares")
@pytest.mark.parametrize(
    ("kind", "dora", "fast"), [("gemma2", False, True), ("llama", True, False)]
)  # Gemma 2 caps its logits, and its head is tied to the embedding
def test_a_grafted_head_and_embedding(kind: str, dora: bool, fast: bool, device: PretendedDevice):
    config = LoraConfig(r=4, target_modules=["lm_head", "embed_tokens", "q_proj"], use_dora=dora)
    check(device, base_model(kind, "float32"), config, fast, masks=True)


def models(
    kind: str, method: str, dropout: float = 0.0, base_dtype: torch.dtype = torch.float32, layers: int = 2
) -> tuple[Any, Any]:
    """The same prepared model on the processor and on the device, which draw different dropout masks."""
    host = tiny_model(kind, vocab_size=257, num_hidden_layers=layers).to(base_dtype)
    disable_dropout(host)
    there = moved(host)
    if method == "lora":
        config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)
        for model in (host, there):
            torch.manual_seed(0)
            graft(model, config)
        there.load_state_dict(host.state_dict())
    return host, there


def gradients_of(model: Any, device: str, computing: Any = None, rows: int | None = None) -> Gradients:
    computing = computing or model
    use_fast_paths(computing)
    batches = StepBatches(uneven_blocks(), Collator(detect_document_masking(model), computing.dtype), 8, seed=1)
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=1, process_index=0)
    return Gradients(model, computing, batches, accelerator, rows)


@pytest.mark.parametrize("method", ["lora", "full", "full in bf16"])
def test_a_step_has_the_gradients_of_the_processor(method: str, device: PretendedDevice):
    host, there = models("llama", method)
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


MPS_ERROR = RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 MB)")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), MPS_ERROR])
def test_a_micro_batch_that_does_not_fit_is_computed_in_halves(error: RuntimeError, device: PretendedDevice):
    host, there = models("llama", "lora", layers=1)
    expected, found = gradients_of(host, "cpu", rows=8), gradients_of(there, NAME)
    whole = found._gradients
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

    found._gradients = limited  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(empty_cache=empty_cache))
        results = found.step(0)
    assert sizes == [8, 4, 2, 2, 2, 2]
    torch.testing.assert_close(on_host(results), expected.step(0), rtol=2e-5, atol=0)
    found._gradients = limited  # type: ignore[method-assign]
    sizes.clear()
    found.step(1)
    assert sizes == [2, 2, 2, 2], "the size is kept"


def test_a_run_waits_for_the_device_only_where_losses_are_read(
    tmp_path: Path, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
):
    """The first step and its doubles (1, 3, 7) until some seconds lie between them, and the last step."""
    _, model = models("llama", "lora", dropout=0.1)
    use_fast_paths(model)
    accelerator: Any = SimpleNamespace(
        device=torch.device(NAME), num_processes=1, process_index=0, is_main_process=True, log=lambda *_, **__: None
    )
    config = run_config(tmp_path, batch_size=4, learning_rate=1e-3, max_steps=9, save_steps=100)
    training = loop_of(config, model, accelerator=accelerator)
    training.log_steps = 100
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN", 1000)
    read: list[int] = []
    losses = training.read_losses
    monkeypatch.setattr(training, "read_losses", lambda: read.append(training.progress.step) or losses())
    device.reset()
    training.run()
    assert sorted(set(read)) == [1, 3, 7, 9]
    assert device.waits.total() == 4, device.waits
    assert training.progress.tokens > 0
    assert math.isfinite(training.progress.loss)


def test_answers_have_the_log_probabilities_of_the_processor_without_a_wait(device: PretendedDevice):
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.0)
    host = grafted(tiny_model("llama"), config)
    there = moved(host)
    found: list[list[Tensor]] = []
    for model, name in ((host, "cpu"), (there, NAME)):
        use_fast_paths(model)
        batch, parameters = batch_of(name), list(trainable_parameters(model).values())
        answers = AnswerTokens.find(batch_of()["labels"], POSITIONS)
        assert len(answers.lengths) == 4
        masks = packed_masks(model.base_model, batch["position_ids"])
        device.reset()
        sums = answer_log_probabilities(
            model, answers, input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=masks
        )
        gradients = torch.autograd.grad(sums @ torch.arange(4.0).to(name), parameters)
        assert device.waits.total() == 0, device.waits
        found.append([on_host(tensor) if name == NAME else tensor for tensor in (sums.detach(), *gradients)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=1e-6)


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
