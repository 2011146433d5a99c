"""Every entry trains what it claims to train, on the same layers, and stops when requested."""

from typing import Any

import pytest
import torch
from benchmarks.models import SHAPES, build
from benchmarks.speed.entries import (
    ALL_ENTRIES,
    DEFAULT_ENTRIES,
    LIMIT_ENTRY,
    PREFERENCE_ENTRIES,
    TRAINING_ENTRIES,
    load_function,
)
from benchmarks.speed.workload import StepBarrier, StopRequested, Workload

from benchmarks.speed import hugging_face, tsugiki_entry, workload
from tests.tiny import save_tiny


class Script:
    """A parent process that requests two steps."""

    def __init__(self) -> None:
        self.asked = iter(["step\n", "step\n"])
        self.messages: list[dict[str, Any]] = []
        self.barrier = StepBarrier(lambda: next(self.asked, ""), self.messages.append)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("base"), n_positions=128)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that trainers receive."""
    found: list[torch.nn.Module] = []
    begin = hugging_face.StepBarrierCallback.on_step_begin

    def keep(self: Any, *arguments: Any, **given: Any) -> None:
        found.append(given["model"])
        begin(self, *arguments, **given)

    monkeypatch.setattr(hugging_face.StepBarrierCallback, "on_step_begin", keep)
    return found


COMPILED = "peft-bf16-compiled"  # inductor takes half a minute
TRAINED = ["chapter", "peft-bf16", "trl-checkpointed", "tsugiki", "trainer-full-fp32", "tsugiki-full-bf16"]
"""An entry of each function and dtype; `test_the_function_of_every_entry_exists` is about all of them."""


@pytest.mark.parametrize("name", [*TRAINED, pytest.param(COMPILED, marks=pytest.mark.slow)])
def test_training(name: str, folder: str, trained: list[torch.nn.Module]):
    script, entry = Script(), TRAINING_ENTRIES[name]
    if entry.missing:
        pytest.skip(f"{entry.missing[0]} is not installed")
    with pytest.raises(StopRequested):
        load_function(entry.function)(Workload(folder, batch=2, length=16), script.barrier)
    ready, *steps = script.messages
    assert set(ready) == {"ready", "loaded"}
    assert len(steps) == 2
    assert all(step["seconds"] > 0 for step in steps)
    if not trained:
        return
    weights = list(trained[0].parameters())
    numbers = sum(weight.numel() for weight in weights if weight.requires_grad)
    everything = sum(weight.numel() for weight in weights)
    # A and B of c_attn [32, 96], c_proj [32, 32], c_fc [32, 128] and c_proj [128, 32], two layers of each.
    pairs = 2 * 8 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert numbers == (everything if entry.full else pairs)
    if entry.compute_dtype == "bf16" and "tsugiki" not in name and not entry.full:
        assert {weight.dtype for weight in weights} == {torch.bfloat16, torch.float32}
    dropouts = {layer.p for path, layer in trained[0].named_modules() if "lora" not in path and hasattr(layer, "p")}
    assert dropouts == ({0.1} if name == "chapter" else {0.0})


def test_a_given_attention_and_adapter(folder: str, trained: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch):
    def keep(model: torch.nn.Module, config: Any) -> Any:
        trained.append(model)
        return prepare(model, config)

    prepare = tsugiki_entry.make_trainable
    monkeypatch.setattr(tsugiki_entry, "make_trainable", keep)
    workload = Workload(folder, batch=1, length=16, r=3, target_modules=["c_attn"])
    for function, attention in (
        (hugging_face.peft_bf16_eager, "eager"),
        (hugging_face.peft_bf16_sdpa, "sdpa"),
        (tsugiki_entry.tsugiki_bf16, None),
    ):
        script = Script()
        trained.clear()
        with pytest.raises(StopRequested):
            function(workload, script.barrier)
        assert script.messages[0]["ready"].get("attention") == attention
        assert attention in (None, trained[0].config._attn_implementation)
        assert sum(p.numel() for p in trained[0].parameters() if p.requires_grad) == 2 * 3 * (32 + 96)


def test_the_first_losses_of_preference_tuning_are_those_of_trl(folder: str, monkeypatch: pytest.MonkeyPatch):
    """Both learn the same pairs from the same adapter; after the first step, AdamW's constants would differ."""
    trainers = pytest.importorskip("trl")
    pytest.importorskip("datasets")
    monkeypatch.setattr(workload, "BATCHES_OF_PAIRS", 1)  # both deal out the pairs in an order of their own
    monkeypatch.setattr(hugging_face, "preferred_compute_dtype", lambda: "fp32")
    for module in (hugging_face, tsugiki_entry):
        monkeypatch.setattr(module, "LEARNING_RATE", 0.01)
    loops, adapter, ours = [], {}, []
    build_loop, end, compute = tsugiki_entry.build_loop, StepBarrier.end, trainers.DPOTrainer.compute_loss
    begin = hugging_face.StepBarrierCallback.on_step_begin

    def keep(*arguments: Any) -> Any:
        loops.append(build_loop(*arguments))
        adapter.update({name: w.detach().clone() for name, w in arguments[3].named_parameters() if w.requires_grad})
        return loops[-1]

    def read(barrier: StepBarrier, **extra: Any) -> None:
        ours.append(loops[0].step_loss)
        end(barrier, **extra)

    work = Workload(folder, batch=3, length=24, prompt=10, r=4)
    with monkeypatch.context() as patched:
        patched.setattr(tsugiki_entry, "build_loop", keep)
        patched.setattr(StepBarrier, "end", read)
        with pytest.raises(StopRequested):
            tsugiki_entry.tsugiki_fp32(work, Script().barrier)

    def copy(self: Any, *arguments: Any, model: torch.nn.Module, **given: Any) -> None:
        if not theirs:
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    path, _, kind = name.removeprefix("base_model.model.").partition(".lora_")
                    weight.data.copy_(adapter.pop(f"{path}.lora.{kind[0]}"))
        begin(self, *arguments, **given)

    def keep_loss(*arguments: Any, **given: Any) -> torch.Tensor:
        theirs.append(float(found := compute(*arguments, **given)))
        return found

    monkeypatch.setattr(hugging_face.StepBarrierCallback, "on_step_begin", copy)
    monkeypatch.setattr(trainers.DPOTrainer, "compute_loss", keep_loss)
    for name in ("trl_dpo", "trl_dpo_best"):
        weights, theirs = dict(adapter), list[float]()
        with pytest.raises(StopRequested):
            getattr(hugging_face, name)(work, Script().barrier)
        assert not adapter, "every weight was copied"
        adapter.update(weights)
        assert ours[0] == pytest.approx(theirs[0], abs=1e-6) == pytest.approx(0.693147, abs=1e-6)
        assert ours[1] == pytest.approx(theirs[1], rel=1e-3)
        assert ours[1] < 0.69


def test_the_function_of_every_entry_exists():
    assert set(DEFAULT_ENTRIES) <= set(ALL_ENTRIES) < set(TRAINING_ENTRIES)
    for entry in [*TRAINING_ENTRIES.values(), *PREFERENCE_ENTRIES.values(), LIMIT_ENTRY]:
        if not entry.missing:
            assert callable(load_function(entry.function))


def test_shapes_have_the_published_numbers_of_parameters(monkeypatch: pytest.MonkeyPatch):
    counts = {}
    for name in SHAPES:
        monkeypatch.setattr(torch.Tensor, "add_", lambda tensor, other: tensor)  # there is no memory to write to
        with torch.device("meta"):
            counts[name] = sum(weight.numel() for weight in build(name, torch.bfloat16).parameters())
    # As published; the chapter's base as docs/from-scratch.md counts it.
    assert counts == {
        "gpt2-small": 124_439_808,
        "rinna-medium": 336_128_000,
        "smollm2-135m": 134_515_008,
        "gemma3-270m": 268_098_176,
        "qwen2.5-0.5b": 494_032_768,
        "tinyllama-1.1b": 1_100_048_384,
        "qwen3-1.7b": 1_720_574_976,
    }
