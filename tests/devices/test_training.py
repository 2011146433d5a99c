"""Every method, forward and backward on the pretended device: one device, no float64, at most one wait of the host."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.devices.pretend import NAME, PretendedDevice, on_host
from tests.methods.test_table import NEEDED, SMALL
from tests.tiny import by_definition, grafted, ids, relative_error, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.fast import keep_mask, masks_from, packed_masks, use_fast_paths
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS
from tsugiki.model import is_quantized

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
    else:
        by_definition(model)


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
    graft(there, config)
    with torch.no_grad():
        values = {**dict(host.named_parameters()), **dict(host.named_buffers())}
        for name, tensor in [*there.named_parameters(), *there.named_buffers()]:
            tensor.copy_(values[name])
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


both_paths = pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])


@pytest.mark.filterwarnings("ignore:lm_head shares")
@both_paths
@pytest.mark.parametrize("kind", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_step_of_every_method(name: str, kind: str, fast: bool, device: PretendedDevice):
    if name == "bitfit" and kind == "llama":
        pytest.skip("no biases")
    method = METHODS[name]
    lora = {"r": 4, "target_modules": "all-linear"} if method.family == "reparametrised" else {}
    config = method.configure({**lora, **NEEDED.get(name, {}), **SMALL.get(name, {})})
    check(device, base_model(kind, "float32"), config, fast)


@both_paths
@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["lora", "dora", "pissa"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("int8", 1e-2)])
def test_a_base_of_fewer_bits(
    dtype: str, tolerance: float, options: dict[str, Any], fast: bool, device: PretendedDevice
):
    config = LoraConfig(r=4, target_modules="all-linear", **options)
    check(device, base_model("llama", dtype), config, fast, tolerance)


@both_paths
@pytest.mark.parametrize("name", ["ia3", "houlsby", "prefix-tuning", "prompt-tuning"])
def test_other_methods_on_an_int8_base(name: str, fast: bool, device: PretendedDevice):
    # A last bit that differs between the device's floats and the processor's integers can change what 8 bits round to.
    check(device, base_model("gpt2", "int8"), METHODS[name].configure(SMALL.get(name, {})), fast, 1e-2)


@pytest.mark.filterwarnings("ignore:lm_head shares")
@both_paths
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["gemma2", "llama"])  # Gemma 2 caps its logits, and its head is tied to the embedding
def test_a_grafted_head_and_embedding(kind: str, dora: bool, fast: bool, device: PretendedDevice):
    config = LoraConfig(r=4, target_modules=["lm_head", "embed_tokens", "q_proj"], use_dora=dora)
    check(device, base_model(kind, "float32"), config, fast, masks=True)


@both_paths
@pytest.mark.parametrize("kind", ["opt", "gemma3_text", "gpt_neox", "qwen3", "mistral"])
def test_other_architectures(kind: str, fast: bool, device: PretendedDevice):
    check(device, base_model(kind, "float32"), LoraConfig(r=4, target_modules="all-linear"), fast, masks=kind != "opt")


@both_paths
def test_dropout_masks_follow_from_the_seed(fast: bool, device: PretendedDevice):
    model = moved(tiny_model("llama"))
    graft(model, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False))
    set_paths(model, fast)

    def step(seed: int) -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(seed)
        return gradients(model, batch_of(NAME))[1]

    device.reset()
    first, again, other = step(1), step(1), step(2)
    assert device.waits.total() <= 3, device.waits
    assert all(torch.equal(again[name], gradient) for name, gradient in first.items())
    assert not any(torch.equal(other[name], gradient) for name, gradient in first.items())


def test_masks_of_a_group_come_from_its_generator(device: PretendedDevice):
    x = torch.ones(10_000, device=NAME)

    def draw(seed: int) -> Tensor:
        with masks_from(torch.Generator().manual_seed(seed)):
            return on_host(keep_mask(x, 0.3))

    first = draw(1)
    torch.rand(3, device=NAME)  # the generator of the device is not used
    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)
    assert 0.68 < -first.float().mean() < 0.72


def test_gradient_checkpointing_draws_the_same_masks(device: PretendedDevice):
    model = moved(tiny_model("llama"))
    graft(model, LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False))
    use_fast_paths(model)
    torch.manual_seed(1)
    _, kept = gradients(model, batch_of(NAME))
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    _, recomputed = gradients(model, batch_of(NAME))
    for name, gradient in recomputed.items():
        assert relative_error(gradient, kept[name]) < 1e-5, name
