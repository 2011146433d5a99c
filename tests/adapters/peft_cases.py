"""The test cases of PEFT itself, through Tsugiki both ways, with outputs and gradients compared.

PEFT's source distribution on PyPI has its tests; the wheel does not. For the installed release:

    pip download --no-deps --no-binary :all: peft==0.21.2 && tar xzf peft-0.21.2.tar.gz
    TSUGIKI_PEFT_TESTS=peft-0.21.2 pytest -m slow tests/adapters/test_peft_cases.py

PEFT's own small models are used as they are. Its settings for models of the Hub, which are downloaded there, are used
on tiny models of the same kinds. Outcomes are those of `tests.adapters.peft_matrix`, and

    gradients       equal outputs, but other gradients, or a parameter that only one of the two trains
"""

import copy
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from tests.adapters.peft_matrix import MODELS, OURS, line_of, quiet, tried
from tests.tiny import relative_error, seeded, shake
from tsugiki import active_adapter, graft, load_adapter, save_adapter
from tsugiki.methods import (
    config_of_peft,
    format_of,
)

_TOLERANCE = 2e-5
PREFIX = "base_model.model."
_KINDS = {
    "test_decoder_models": ["gpt2", "llama", "opt"],
    "test_encoder_decoder_models": ["t5", "bart"],
    "test_feature_extraction_models": ["bert"],
    "test_seq_classifier": ["bert for sequences", "llama for sequences"],
}
"""Module of PEFT's tests -> the tiny models on which its settings are tried."""
_SIZES = {"vocab_size", "base_model_name_or_path"}


class Case:
    """A model with its inputs, and PEFT's config for it."""

    def __init__(self, build: Any, inputs: Any, config: type[Any], settings: dict[str, Any]) -> None:
        self.build, self.inputs, self.config = build, inputs, config
        self.settings = {name: value for name, value in settings.items() if name not in _SIZES}

    def peft_config(self) -> Any:
        return self.config(**copy.deepcopy(self.settings))


def _module(name: str) -> Any:
    """A module of PEFT's tests, as one of a package `peft_tests`; what it needs for images is replaced."""
    if "peft_tests" not in sys.modules:
        package = types.ModuleType("peft_tests")
        package.__path__ = [str(Path(os.environ["TSUGIKI_PEFT_TESTS"]) / "tests")]
        sys.modules["peft_tests"] = package
        if importlib.util.find_spec("diffusers") is None:
            images: Any = types.ModuleType("diffusers")
            images.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
            sys.modules["diffusers"] = images
    return importlib.import_module(f"peft_tests.{name}")


def cases() -> dict[str, Case]:
    """All cases by name, which begins with the class of the config."""
    found: dict[str, Case] = {}
    custom = _module("test_custom_models")
    inputs = {"X": torch.arange(90).view(9, 10)}
    for name, model, config, settings in custom.TEST_CASES:
        build = _built(custom.MockTransformerWrapper, model)
        found[f"{config.__name__} | {model} | {name}"] = Case(build, inputs, config, settings)
    for module, kinds in _KINDS.items():
        for number, (config, settings) in enumerate(_module(module).ALL_CONFIGS):
            for kind in kinds:
                task = {"task_type": MODELS[kind].task}
                case = Case(MODELS[kind].build, MODELS[kind].inputs(), config, {**settings, **task})
                found[f"{config.__name__} | {kind} | {module} {number}"] = case
    return found


def _built(wrapper: Any, model: str) -> Any:
    return lambda: wrapper.from_pretrained(model).eval()


def _loss(model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
    """The outputs, without those of a prompt, and a loss that depends on each of them."""
    model.zero_grad()
    result = model(**inputs)
    output = result if isinstance(result, Tensor) else result.logits if "logits" in result else result[0]
    if "input_ids" in inputs and output.dim() == 3:
        output = output[:, -inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1] :]
    weights = torch.randn(output.shape, generator=seeded(0))
    return output.detach(), (output * weights).sum()


def _of_peft(model: Any) -> dict[str, Tensor]:
    parts = (".modules_to_save.default", ".default.weight", ".default")
    names = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            key = name.replace(".weight", "") if "magnitude" in name or "ia3" in name else name
            for part in parts:
                key = key.replace(part, ".weight" if part == ".default.weight" else "")
            key = key.replace("prompt_encoder.embedding.weight", "prompt_embeddings")
            # Around a soft prompt there is one module less.
            names[key if key.startswith(PREFIX) else key.replace("base_model.", PREFIX)] = parameter.grad
    return names


def _of_ours(model: Any) -> dict[str, Tensor]:
    adapter = active_adapter(model)
    tensors = format_of(adapter.config).tensors(model, adapter)
    for path, module in getattr(adapter, "modules", {}).items():  # the file's tensors of these are detached
        tensors |= {f"{PREFIX}{path}.{name}": parameter for name, parameter in module.named_parameters()}
    return {key: tensor.grad for key, tensor in tensors.items() if tensor.is_leaf and tensor.grad is not None}


def _compared(theirs: Any, ours: Any, base: Tensor, inputs: Any) -> str:
    expected, their_loss = _loss(theirs.eval(), inputs)
    found, our_loss = _loss(ours.eval(), inputs)
    if found.shape != expected.shape or relative_error(found, expected) > _TOLERANCE:
        error = relative_error(found, expected) if found.shape == expected.shape else "another shape"
        return f"wrong: {error}"
    trains_other_parameters = "PromptEncoder" in type(getattr(active_adapter(ours), "config", None)).__name__
    if not their_loss.requires_grad or trains_other_parameters:  # the file has what the encoder has computed
        return "equal" if not torch.equal(expected, base) else "no effect"
    their_loss.backward(), our_loss.backward()
    one, other = _of_peft(theirs), _of_ours(ours)
    for key in one.keys() & other.keys():
        if one[key].any() and relative_error(other[key].view_as(one[key]), one[key]) > 20 * _TOLERANCE:
            return f"gradients: {key} {relative_error(other[key].view_as(one[key]), one[key]):.2g}"
    alone = sorted(key for key in one.keys() ^ other.keys() if (one | other)[key].any())
    if alone:
        return f"gradients: {'PEFT' if alone[0] in one else 'Tsugiki'} alone trains {alone[0]} ({len(alone)} such)"
    return "equal" if not torch.equal(expected, base) else "no effect"


def outcomes(case: Case, folder: Path) -> Iterator[str]:
    """PEFT's file here, and our file in PEFT."""
    base = _loss(case.build(), case.inputs)[0]
    try:
        theirs = shake(peft.get_peft_model(case.build(), case.peft_config()))
        _loss(theirs, case.inputs)
        theirs.save_pretrained(folder / "theirs")
        again = _read_by_peft(case, folder / "theirs")
    except Exception as error:
        yield from [f"peft cannot: {line_of(error)}"] * 2
        return
    yield tried(lambda: _compared(again, load_adapter(case.build(), folder / "theirs"), base, case.inputs), folder)

    def to_peft() -> str:
        if case.config is peft.LoraConfig:
            config: Any = config_of_peft(case.peft_config())
        elif case.config.__name__ in OURS:
            known = OURS[case.config.__name__]
            names = {name for name in known.__dataclass_fields__ if name in case.settings}
            config = known(**{name: case.settings[name] for name in names})
        else:
            return "no setting"
        ours = shake(graft(case.build(), config))
        save_adapter(ours, folder / "ours")
        try:
            read = _read_by_peft(case, folder / "ours")
        except Exception as error:
            return f"wrong: PEFT raises {type(error).__name__}: {line_of(error)}"
        return _compared(read, ours, base, case.inputs)

    yield tried(to_peft, folder)


def _read_by_peft(case: Case, folder: Path) -> Any:
    """PEFT's model with the adapter in a folder. PEFT freezes soft prompts that it has loaded; here they train."""
    is_prompt = case.peft_config().is_prompt_learning
    model = peft.PeftModel.from_pretrained(case.build(), folder, is_trainable=not is_prompt)
    for name, parameter in model.named_parameters():
        if is_prompt and ("prompt_encoder." in name or "modules_to_save.default" in name):
            parameter.requires_grad_()
    return model


def run(case: Case) -> list[str]:
    """The outcomes of a case, which are no effect of an earlier one."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        torch.manual_seed(0)
        return list(outcomes(case, Path(folder)))
