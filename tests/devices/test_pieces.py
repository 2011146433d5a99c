"""Parts of a run on the pretended device: initial values, random numbers, probes, the loss, int8 and evaluation."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.devices.pretend import MODULE, NAME, PretendedDevice, on_host
from tests.devices.test_training import batch_of, gradients, moved
from tests.methods.test_table import SMALL
from tests.tiny import TEXT, byte_tokenizer, ids, relative_error, tiny_model
from tsugiki import LoraConfig, graft, save_adapter, trainable_parameters
from tsugiki.base import default_device
from tsugiki.data import Document
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.fast import (
    Head,
    attention,
    chunked_loss,
    detect_document_masking,
    packed_masks,
    plain_loss,
    use_fast_paths,
)
from tsugiki.lora import LoraLinear, new_pair
from tsugiki.lowbit import Int8Linear, quantization, quantize
from tsugiki.methods import METHODS
from tsugiki.model import same_to_rounding, seeded
from tsugiki.training import evaluate, split_windows

SPREAD = {"init_lora_weights": False}


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "pissa", "pissa_niter_2", False])
def test_initial_values_are_those_of_the_processor(init: bool | str, device: PretendedDevice):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init)
    model = tiny_model("llama")
    there = moved(model)
    torch.manual_seed(5)
    graft(model, config)
    torch.manual_seed(5)
    graft(there, config)
    expected = trainable_parameters(model)
    for name, parameter in trainable_parameters(there).items():
        assert parameter.device.type == NAME
        assert torch.equal(on_host(parameter), expected[name]), name


@pytest.mark.parametrize("name", ["prompt-tuning", "prefix-tuning", "p-tuning", "houlsby", "ia3"])
def test_initial_values_of_other_methods(name: str, device: PretendedDevice):
    settings = {**SMALL.get(name, {}), **({"init_ia3_weights": False} if name == "ia3" else {})}
    model = tiny_model("llama")
    there = moved(model)
    for one in (model, there):
        torch.manual_seed(5)
        graft(one, METHODS[name].configure(settings))
    expected = trainable_parameters(model)
    for name_, parameter in trainable_parameters(there).items():
        assert relative_error(on_host(parameter.detach()) + 1, expected[name_].detach() + 1) < 1e-5, name_


def test_seeded_restores_the_generators_of_the_device(device: PretendedDevice):
    before = MODULE.get_rng_state()
    with seeded(0):
        first = on_host(torch.rand(3, device=NAME))
    with seeded(0):
        assert torch.equal(on_host(torch.rand(3, device=NAME)), first)
    assert torch.equal(MODULE.get_rng_state(), before)


def test_the_device_is_the_machines_accelerator(device: PretendedDevice, monkeypatch: pytest.MonkeyPatch):
    assert default_device().type == NAME
    assert preferred_compute_dtype() == "bf16"
    monkeypatch.setattr(quantization, "exact_integers", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(tiny_model())


def test_results_are_compared_without_float64(device: PretendedDevice):
    x = torch.randn(5, 7)
    assert same_to_rounding(x.to(NAME), x.to(NAME))
    assert not same_to_rounding(x.to(NAME), x.to(NAME) * 2)


@pytest.mark.parametrize(("kind", "expected"), [("llama", "position_ids"), ("opt", "attention_mask")])
def test_documents_are_masked_as_on_the_processor(kind: str, expected: str, device: PretendedDevice):
    model = tiny_model(kind)
    assert detect_document_masking(model) == detect_document_masking(moved(model)) == expected


def test_block_attention_is_for_the_processor(device: PretendedDevice):
    model = moved(tiny_model("llama"))
    use_fast_paths(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # Gemma 2 caps its scores, which SDPA does not
def test_a_model_that_moves_after_its_fast_paths_were_chosen(
    kind: str, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
):
    model = tiny_model(kind, attn_implementation="eager", max_position_embeddings=128)
    graft(model, LoraConfig(r=4, target_modules="all-linear", **SPREAD))
    use_fast_paths(model)
    assert model.config._attn_implementation == "tsugiki"
    there = moved(model)
    tokens = ids(2, 100)
    _, expected = gradients(model, {"input_ids": tokens, "labels": tokens})
    if kind == "llama":
        monkeypatch.setattr(attention, "plain_attention", None)  # it keeps the scores of all pairs of tokens
    _, found = gradients(there, {"input_ids": tokens.to(NAME), "labels": tokens.to(NAME)})
    for name, gradient in found.items():
        assert relative_error(gradient, expected[name]) < 2e-5, name


def head_of(kind: str, vocabulary: int = 50) -> Head:
    torch.manual_seed(1)
    layer: nn.Module = nn.Linear(8, vocabulary, bias=kind == "biased").requires_grad_(kind == "trained")
    if kind == "int8":
        layer = Int8Linear.from_layer(layer, torch.float32)
    if kind == "grafted":
        layer = LoraLinear(layer)
        layer.lora = new_pair(layer.base_layer, 2, 1.5, 0.0, False)
    return Head(layer, 0.5 if kind == "scaled" else 1.0, 3.0 if kind == "capped" else None)


def loss_and_gradients(loss_of: Any, hidden: Tensor, head: Head, labels: Tensor) -> dict[str, Tensor]:
    hidden = hidden.detach().requires_grad_()
    loss = loss_of(hidden, head, labels)
    loss.backward()
    trained = {name: p.grad for name, p in head.layer.named_parameters() if p.requires_grad}
    return {name: on_host(t) for name, t in {"loss": loss.detach(), "hidden": hidden.grad, **trained}.items()}


@pytest.mark.parametrize("kind", ["plain", "biased", "trained", "int8", "grafted", "scaled", "capped"])
@pytest.mark.parametrize("large", [False, True])
def test_the_chunked_loss(kind: str, large: bool, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.fast.loss._DEVICE_SCRATCH", 1)  # chunks of 16 rows
    hidden, labels = torch.randn(3, 20, 8), torch.randint(0, 50, (3, 20))
    labels[:, ::4] = -100
    hidden[0] *= 500 if large else 1  # so that some targets are very improbable
    expected = loss_and_gradients(plain_loss, hidden, head_of(kind), labels)
    head = head_of(kind)
    head.layer.to(NAME)
    device.reset()
    found = loss_and_gradients(chunked_loss, hidden.to(NAME), head, labels.to(NAME))
    assert not device.waits
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert relative_error(value, expected[name]) < (1e-4 if kind == "int8" else 1e-5), name


def test_the_loss_of_improbable_targets_in_16_bits(device: PretendedDevice):
    head, hidden, labels = head_of("plain"), 40 * torch.randn(32, 8), torch.randint(0, 50, (32,))
    expected = plain_loss(hidden.bfloat16(), Head(head.layer.bfloat16()), labels)
    assert expected / 32 > 40
    head.layer.to(NAME)
    found = chunked_loss(hidden.bfloat16().to(NAME), head, labels.to(NAME))
    assert relative_error(on_host(found), expected) < 1e-2


def test_the_loss_takes_few_operations(device: PretendedDevice):
    head = head_of("plain", vocabulary=150_000)
    head.layer.to(NAME)
    hidden, labels = torch.randn(64, 8).to(NAME), torch.randint(0, 150_000, (64,)).to(NAME)
    device.reset()
    loss_and_gradients(chunked_loss, hidden, head, labels)
    assert device.operations < 60, device.operations
    assert not device.waits


def test_int8_computes_in_the_dtype_of_the_activations(device: PretendedDevice):
    torch.manual_seed(0)
    layer = Int8Linear.from_layer(nn.Linear(64, 96).bfloat16(), torch.bfloat16)
    x, dy = torch.randn(4, 64).bfloat16(), torch.randn(4, 96).bfloat16()
    expected = layer.product(x), layer.input_gradient(dy)
    layer.to(NAME)
    x, dy = x.to(NAME), dy.to(NAME)
    device.reset()
    found = layer.product(x), layer.input_gradient(dy)
    assert device.largest[torch.float32] < layer.qweight.numel()
    assert device.largest[torch.bfloat16] == layer.qweight.numel()
    for ours, wanted in zip(found, expected, strict=True):
        assert (on_host(ours) - wanted).norm() < 0.01 * wanted.norm()


def test_int8_codes_move_with_the_model_and_keep_their_dtypes(device: PretendedDevice):
    layer = Int8Linear.from_layer(nn.Linear(64, 96), torch.float32)
    expected = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(NAME, torch.float16)
    assert layer.dtype == layer.bias.dtype == torch.float16
    for name in ("qweight", "scale", "means"):
        tensor = getattr(layer, name)
        assert isinstance(tensor, nn.Parameter)
        assert not tensor.requires_grad
        assert tensor.device.type == NAME
        assert torch.equal(on_host(tensor), expected[name])


@pytest.mark.parametrize("fast", [True, False])
def test_an_evaluation_waits_once_for_its_figures(fast: bool, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tsugiki.training.evaluation.evaluate._DEVICE_TOKENS", 300)  # several batches
    model = tiny_model("llama", vocab_size=257, max_position_embeddings=2048)
    documents = [Document(text, "data:1") for text in TEXT.splitlines()[:12]]
    windows = split_windows(documents, [len(document.text) for document in documents])
    expected = evaluate(model, byte_tokenizer(), windows)
    there = moved(model)
    if fast:
        use_fast_paths(there)
    batches: list[int] = []
    device.reset()
    found = evaluate(there, byte_tokenizer(), windows, advance=batches.append)
    assert len(batches) > 2
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert sum(count for place, count in device.waits.items() if "_to_copy" in place) == 1, device.waits
    # transformers asks at the beginning of a batch, when the device has nothing else to do, whether its rows are packed
    assert device.waits.total() == 1 + len(batches), device.waits


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt-tuning", "houlsby"])
def test_an_adapter_is_saved_from_the_device(name: str, device: PretendedDevice, tmp_path: Any):
    model = moved(tiny_model("llama"))
    graft(model, METHODS[name].configure({"num_virtual_tokens": 4} if name == "prompt-tuning" else {}))
    gradients(model, batch_of(NAME))
    save_adapter(model, tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "orthogonal"}]
)
def test_a_grafted_model_runs_on_the_meta_device(options: dict[str, Any]):
    with torch.device("meta"):
        model = tiny_model("llama")
    graft(model, LoraConfig(r=4, target_modules="all-linear", **options))
    use_fast_paths(model, attention=False, loss=False)
    tokens = torch.zeros(2, 12, dtype=torch.long, device="meta")
    masks = packed_masks(model.base_model, tokens)
    hidden = model.base_model(input_ids=tokens, attention_mask=masks, use_cache=False).last_hidden_state
    chunked_loss(hidden, Head(model.lm_head), tokens).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in trainable_parameters(model).values())
