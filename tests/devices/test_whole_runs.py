"""Whole runs on the pretended accelerator, a few steps each, against the same runs on the processor."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.devices.pretend import NAME, PretendedDevice, on_host
from tests.files import write_rows
from tests.methods.test_table import NEEDED, SMALL
from tests.runs import interrupt, run_config, tiny_base
from tests.serve import conftest as serve_conftest
from tests.serve.asking import at_once, texts
from tests.serve.conftest import save_adapter_of, start
from tests.tiny import TEXT, ids, save_tiny
from tests.training.run.test_preference_runs import pairs_of
from tests.training.run.test_reward import prompts, rule
from tsugiki import generate, load_adapter, mixed_batch
from tsugiki.base import load_model
from tsugiki.generation import Engine
from tsugiki.io import ADAPTER_FILE, MODEL_FILE
from tsugiki.methods import METHODS, save_model
from tsugiki.preference import sampling
from tsugiki.training import RunRecord, train
from tsugiki.training.model import trainable
from tsugiki.training.run.reward import train_by_reward
from tsugiki.training.score import targets
from tsugiki.training.tools import processes

TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}{{ eos_token }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}a:{% endif %}"
NO_DROPOUT = {"lora": {"r": 4, "lora_dropout": 0.0}}


def questions(folder: Path) -> str:
    return _rows(folder / "questions.jsonl", lambda place, answer: {"question": place, "answer": answer})


def conversations(folder: Path) -> str:
    def row(place: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": place}, {"role": "assistant", "content": answer}]}

    return _rows(folder / "conversations.jsonl", row)


def template(folder: Path) -> str:
    path = folder / "template.jinja"
    path.write_text(TEMPLATE)
    return str(path)


def _rows(path: Path, row: Callable[[str, str], dict[str, Any]]) -> str:
    rows = [row(f"{n} {TEXT[n * 9 : n * 9 + 4]}", TEXT[n * 9 + 4 : n * 9 + 9]) for n in range(20)]
    return write_rows(path, rows)


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """The settings of a case: a method, a dtype of the base or of full fine-tuning, or a kind of data."""
    kind, _, detail = name.partition(" ")
    if kind == "method":
        method = METHODS[detail]
        if method.family == "reparametrised":
            return {"method": detail, "base_dtype": "fp32", "lora": {"r": 4, "target_modules": ["c_attn", "c_fc"]}}
        own = NEEDED.get(detail, {}) | SMALL.get(detail, {})
        return {"method": detail, "base_dtype": "fp32", "method_config": own}
    if kind == "full":  # a model without tied weights, because `to` unties those whose tensors are wrappers
        base = tiny_base(folder, "llama")
        return {"method": "full", "model": base, "compute_dtype": detail, "learning_rate": 1e-3}
    if kind == "base":
        return {**NO_DROPOUT, "base_dtype": detail}
    data: dict[str, dict[str, Any]] = {
        "text": {"eval_steps": 2, "sample_steps": 2, "validation": "auto", "held_out": 0.5},
        "questions": {"data": questions(folder), "block_size": 64},
        "conversations": {"data": conversations(folder), "chat_template": template(folder), "block_size": 64},
        "pairs": {
            "data": pairs_of(folder),
            "preference": "dpo",
            "block_size": 64,
            "allow_overlap": True,
            "prompts": [],
        },
        "rewards": {
            "data": prompts(folder),
            "reward": [rule(folder)],
            "reward_settings": {"rounds": 1, "samples": 3, "tokens": 6, "temperature": 1, "forgetting": 9},
            "block_size": 64,
            "prompts": [],
            "held_out": "none",
        },
    }
    return {**NO_DROPOUT, "base_dtype": "fp32", **data[detail]}


QUICK = ["method lora", "full bf16", "data text"]
CASES = [
    *(f"method {name}" for name in METHODS if name != "full"),
    *(f"full {dtype}" for dtype in ("fp32", "bf16", "fp16")),
    *(f"base {dtype}" for dtype in ("fp32", "bf16", "fp16", "int8", "nf4")),
    *(f"data {kind}" for kind in ("text", "questions", "conversations", "pairs", "rewards")),
]
EXACT, HALF = 2e-4, 3e-2
TOLERANCE = {"full bf16": HALF, "full fp16": HALF, "base bf16": HALF, "base fp16": HALF, "base nf4": HALF}
TOLERANCE |= {"base int8": 1e-2}


@pytest.fixture
def computing_device(device: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> PretendedDevice:
    """The device, chosen by runs; it has float64, which GradScaler and quantisation may use."""
    device.float64 = True
    monkeypatch.setitem(processes._IS_AVAILABLE, NAME, lambda: True)  # type: ignore[index]
    # transformers finds tied weights by their addresses, which a wrapper does not have.
    monkeypatch.setattr(trainable, "save_model", lambda model, *others: save_model(with_host_tensors(model), *others))
    return device


def with_host_tensors(model: Any) -> Any:
    """A copy of the model with the values of the device's tensors."""
    tensors = [(p, nn.Parameter(on_host(p.detach()))) for p in model.parameters()]
    return copy.deepcopy(
        model, {id(one): host for one, host in (*tensors, *((b, on_host(b)) for b in model.buffers()))}
    )


@pytest.fixture(autouse=True)
def _whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model never ends a text, so what is cut off is taken as it is."""
    monkeypatch.setattr(sampling, "_SENTENCES", re.compile(".*", re.DOTALL))


def train_on(config: Any, name: str, resume: bool = False) -> RunRecord:
    """Run on "cpu" or on the device, with a state of accelerate's of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AcceleratorState, "_shared_state", {})
        patch.setattr(PartialState, "_shared_state", {})
        if name == NAME:
            patch.setenv("ACCELERATE_TORCH_DEVICE", f"{NAME}:0")
            patch.setattr(processes, "device_type", lambda device: NAME)
        return (train_by_reward if config.reward else train)(config, resume=resume)


def weights_of(out: str) -> dict[str, Tensor]:
    return load_file(next(path for name in (ADAPTER_FILE, MODEL_FILE) if (path := Path(out) / name).exists()))


@pytest.mark.parametrize("name", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_a_run_has_the_results_of_the_processor(name: str, tmp_path: Path, computing_device: PretendedDevice):
    settings, tolerance = settings_of(name, tmp_path), TOLERANCE.get(name, EXACT)
    there, here = (
        run_config(tmp_path, out, device=device, **settings) for out, device in (("there", "auto"), ("here", "cpu"))
    )
    found, expected = train_on(there, NAME), train_on(here, "cpu")
    assert found.machine is not None
    assert found.machine.accelerator == NAME
    assert [p.loss for p in found.loss_curve] == pytest.approx([p.loss for p in expected.loss_curve], rel=tolerance)
    losses = [[one.loss for one in record.evaluations] for record in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    theirs = weights_of(here.out)
    for key, weight in weights_of(there.out).items():
        assert (weight - theirs[key]).norm() <= 30 * tolerance * theirs[key].norm() + 1e-5, key


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_run_resumes_with_the_same_bytes(method: str, tmp_path: Path, computing_device: PretendedDevice):
    settings = {"model": tiny_base(tmp_path, "llama")} | (NO_DROPOUT if method == "lora" else {"method": "full"})
    whole, cut = (run_config(tmp_path, out, **settings) for out in ("whole", "cut"))
    train_on(whole, NAME)
    interrupt(lambda config: train_on(config, NAME), cut, 3)
    train_on(cut, NAME, resume=True)
    found, expected = (weights_of(config.out) for config in (cut, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())


def test_generating_and_a_mixed_batch_give_the_results_of_the_processor(
    tmp_path: Path, computing_device: PretendedDevice
):
    base, tokens = save_tiny(tmp_path / "base"), ids(3, vocabulary=256)
    for seed, name in enumerate(("a", "b")):
        save_adapter_of(base, tmp_path / name, seed)
    found: list[Tensor] = []
    for device in (NAME, "cpu"):
        model = load_model(base).to(device)
        for name in ("a", "b"):
            load_adapter(model, tmp_path / name, name)
        with mixed_batch(model, ["a", None, "b"]), torch.no_grad():
            found.append(on_host(model(input_ids=tokens.to(device)).logits))
            found.append(on_host(model.generate(tokens.to(device), max_new_tokens=6, do_sample=False)))
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], found[3])
    options = {"adapter": str(tmp_path / "a"), "model": base, "max_new_tokens": 6, "temperature": 0.0}
    computing_device.reset()
    there = generate("枝を", **options)
    assert any("dtypes.py" not in place for place in computing_device.waits), "it was generated on the device"
    computing_device.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "default_device", lambda: torch.device("cpu"))
        assert generate("枝を", **options) == there
    assert all("dtypes.py" in place for place in computing_device.waits), "there, only the dtype was chosen"


@pytest.mark.slow
def test_a_server_with_two_adapters_answers_as_on_the_processor(
    tmp_path: Path, computing_device: PretendedDevice, monkeypatch: pytest.MonkeyPatch
):
    base, library = save_tiny(tmp_path / "base", n_positions=256), tmp_path / "library"
    for seed, name in enumerate(("a", "b")):
        save_adapter_of(base, library / name, seed)
    asked: list[dict[str, Any]] = [
        {"model": name, "prompt": "枝を", "temperature": 0, "max_tokens": 8} for name in ("a", "base", "b")
    ]
    with start(base, library) as server:
        expected = texts(at_once(server, asked))
    run = Engine._run

    def on_device(engine: Engine) -> None:
        """A mode belongs to one thread, so that of the engine has its own."""
        torch._C._set_only_lift_cpu_tensors(True)
        with PretendedDevice():
            run(engine)

    monkeypatch.setattr(Engine, "_run", on_device)
    monkeypatch.setattr(serve_conftest, "load_model", lambda name: load_model(name).to(NAME))
    with start(base, library) as server:
        assert str(server.model.device) == f"{NAME}:0"
        assert texts(at_once(server, asked)) == expected
    assert len(set(expected)) == 3
