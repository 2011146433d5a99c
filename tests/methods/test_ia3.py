"""(IA)³: compared with PEFT, merging, and use in a model."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.adapters.folders import edit_config
from tests.tiny import CONFIGS, logits, relative_error, shake, tiny_model, train_steps
from tests.tiny_types import inputs_for, tiny_of
from tsugiki import (
    TsugikiError,
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.io import ADAPTER_FILE
from tsugiki.lora import is_grafted
from tsugiki.methods import IA3Config

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

SHAPES = ["gpt2", "llama", "gemma3_text", "opt"]
KEYS = {"gpt2": "c_attn", "llama": "k_proj", "gemma3_text": "k_proj", "opt": "k_proj"}
INNER = {"gpt2": "mlp.c_proj", "llama": "down_proj", "gemma3_text": "down_proj", "opt": "fc2"}
VARIANTS: dict[str, Any] = {
    "default": lambda kind: {},
    "outputs alone": lambda kind: {"target_modules": [KEYS[kind]], "feedforward_modules": []},
    "inputs alone": lambda kind: {"target_modules": [INNER[kind]], "feedforward_modules": [INNER[kind]]},
    "regex": lambda kind: {
        "target_modules": rf".*\.1\..*({KEYS[kind]}|{INNER[kind]})",
        "feedforward_modules": r".*(c_proj|down_proj|fc2)",
    },
    "exclude": lambda kind: {
        "target_modules": [KEYS[kind], INNER[kind]],
        "feedforward_modules": [INNER[kind]],
        "exclude_modules": r".*\.0\..*",
    },
    "all-linear": lambda kind: {"target_modules": "all-linear"},
    "saved head": lambda kind: {"modules_to_save": ["lm_head"]},
    "head": lambda kind: {"target_modules": [KEYS[kind], "lm_head"], "feedforward_modules": []},
    "saved norms": lambda kind: {
        "modules_to_save": ["ln_f" if kind == "gpt2" else "final_layer_norm" if kind == "opt" else "model.norm"]
    },
}
CASES = [(SHAPES[i % 4], variant) for i, variant in enumerate(VARIANTS)] + [("llama", "default"), ("opt", "default")]


def peft_model(kind: str, variant: str) -> Any:
    config = peft.IA3Config(task_type="CAUSAL_LM", **VARIANTS[variant](kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(tiny_model(kind), config).eval()


def grafted(kind: str = "gpt2", **given: Any) -> Any:
    model = tiny_model(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graft(model, IA3Config(**given))
    return shake(model)


# --- against PEFT -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_files_are_exchanged_with_peft_both_ways_and_merged_weights_are_equal(kind: str, variant: str, tmp_path: Path):
    model = grafted(kind, **VARIANTS[variant](kind))
    base = logits(tiny_model(kind))
    adapted = logits(model)
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours").eval()
    assert relative_error(adapted, base) > 1e-5  # scaled keys alone change little
    assert relative_error(logits(theirs), adapted) < 1e-6

    theirs = shake(peft_model(kind, variant))
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_adapter(tiny_model(kind), tmp_path / "theirs")
    adapted = logits(model)
    assert relative_error(adapted, logits(theirs)) < 1e-6
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    if variant == "head":  # which `test_a_merged_head_gives_the_adapted_logits` merges
        return
    merged = dict(ungraft(merge(model)).named_parameters())
    expected = dict(theirs.merge_and_unload().named_parameters())
    assert merged.keys() == expected.keys()
    for name, weight in merged.items():
        assert relative_error(weight, expected[name]) < 1e-6, name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", SHAPES)
def test_a_merged_head_gives_the_adapted_logits(kind: str, tmp_path: Path):
    # PEFT scales the weight that head and embedding share, and so changes the embedding, too. Compare with its adapted
    # model instead.
    theirs = shake(peft_model(kind, "head"))
    theirs.save_pretrained(tmp_path / "adapter")
    model = tiny_model(kind)
    load_adapter(model, tmp_path / "adapter")
    ungraft(merge(model)).save_pretrained(tmp_path / "merged")
    assert relative_error(logits(model), logits(theirs)) < 1e-5
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(logits(again), logits(theirs)) < 1e-5


@pytest.mark.parametrize("kind", SHAPES)
def test_gradients_and_steps_equal_pefts(kind: str, tmp_path: Path):
    theirs = shake(peft_model(kind, "default"))
    theirs.save_pretrained(tmp_path / "start")
    ours = tiny_model(kind)
    load_adapter(ours, tmp_path / "start")
    ours.train()  # our base has its dropout off; PEFT's model is in evaluation mode instead
    for model in (theirs, ours):
        train_steps(model, 3)
    gradients = {
        name.replace("base_model.model.", "").replace(".ia3_l.default", ""): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    trained = trainable_parameters(ours)
    assert {name.replace(".tsugiki.ia3_l", "") for name in trained} == set(gradients)
    for name, p in trained.items():
        assert relative_error(p.grad, gradients[name.replace(".tsugiki.ia3_l", "")]) < 1e-5, name
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")
    mine, other = (load_file(tmp_path / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    assert mine.keys() == other.keys()
    for key, tensor in mine.items():
        assert tensor.shape == other[key].shape
        assert relative_error(tensor, other[key]) < 1e-5, key


def test_a_file_that_peft_writes_but_does_not_read(tmp_path: Path):
    # PEFT replaces "all-linear" by full names, and then misses the ending of feedforward_modules among them. We write
    # full names for both.
    peft_model("gpt2", "all-linear").save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="subset"):
        peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "theirs")
    model = tiny_model()
    with pytest.warns(UserWarning, match="no effect"):
        load_adapter(model, tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours")
    peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")


@pytest.mark.parametrize(
    "kind", [kind for kind in CONFIGS if kind in peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING]
)
def test_the_default_layers_equal_pefts(kind: str):
    theirs = peft_model(kind, "default")
    expected = {
        name.replace("base_model.model.", "").replace(".ia3_l.default", ""): tuple(p.shape)
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    adapter = active_adapter(graft(tiny_model(kind), IA3Config()))
    assert {path: tuple(s.ia3_l.shape) for path, s in adapter.scalings.items()} == expected


def test_random_factors_are_initialised_as_in_peft():
    adapter = active_adapter(graft(tiny_model(n_embd=256), IA3Config(init_ia3_weights=False)))
    values = torch.cat([s.ia3_l.detach().flatten() for s in adapter.scalings.values()])
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05


# --- in a model ---------------------------------------------------------------------------------------------


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_modules": ["q_proj"]}, "target_modules=q_proj .* c_attn"),
        ({"target_modules": ["ln_1"]}, "ln_1.*LayerNorm"),
        ({"target_modules": ["wte"]}, "transformer.wte.*Embedding"),
        ({"target_modules": ["c_attn"], "modules_to_save": ["head"]}, "modules_to_save.*'head'"),
    ],
)
def test_a_refused_graft_leaves_the_model_unchanged(given: dict[str, Any], said: str):
    model = tiny_model()
    with pytest.raises(TsugikiError, match=said):
        graft(model, IA3Config(**given))
    assert not is_grafted(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target_modules": "("}, "target_modules: '\\(' .*regular expression"),
        ({"target_modules": 3}, "^target_modules"),
        (
            {"target_modules": ["c_attn"], "feedforward_modules": ["c_attn", "c_proj"]},
            "feedforward_modules .*c_proj.* target_modules",
        ),
    ],
)
def test_invalid_settings_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(TsugikiError, match=said):
        IA3Config(**given)


def test_an_unknown_architecture_needs_target_modules():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with pytest.raises(TsugikiError, match="Sequential.*target_modules"):
        graft(model, IA3Config())
    adapter = active_adapter(graft(model, IA3Config(target_modules=["0", "2"], feedforward_modules=["2"])))
    assert {path: tuple(s.ia3_l.shape) for path, s in adapter.scalings.items()} == {"0": (3, 1), "2": (1, 3)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"a_field_of_the_future": 3}, "a_field_of_the_future=3"),
        ({"peft_type": "LORA"}, "feedforward_modules="),
        ({"peft_type": "TSUGIKI_BOTTLENECK"}, "would change the result"),
        ({"feedforward_modules": []}, "[1, 128], expected [32, 1]"),
        ({"target_modules": ["c_attn", "mlp.c_proj", "c_fc"]}, "is missing"),
        ({"target_modules": ["mlp.c_proj"]}, "is not part of the adapter"),
        ({"target_modules": ["k_proj", "mlp.c_proj"], "exclude_modules": ["c_proj"]}, "does not fit this model"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(fields: dict[str, Any], said: str, tmp_path: Path):
    save_adapter(grafted(), tmp_path)
    edit_config(tmp_path, **fields)
    model = tiny_model()
    with pytest.raises(TsugikiError) as caught:
        load_adapter(model, tmp_path)
    assert said in str(caught.value)
    assert not is_grafted(model)


def test_merging_non_finite_values_is_refused_and_changes_nothing():
    for attribute in ("weight", "bias"):
        model = tiny_model()
        getattr(model.transformer.h[0].attn.c_attn, attribute).data.mul_(1e30)
        graft(model, IA3Config())
        with torch.no_grad():
            for p in trainable_parameters(model).values():
                p.mul_(1e20)
        before = dict(model.named_parameters())
        with pytest.raises(TsugikiError, match="not finite.*c_attn"):
            merge(model)
        assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["bert", "ctrl"])
def test_ia3_works_without_a_row_and_peft_reads_its_file(kind: str, tmp_path: Path):
    model = tiny_of(kind)
    inputs = inputs_for(model)
    with torch.no_grad():
        base = model(**inputs).logits
        graft(model, IA3Config())
        assert torch.equal(model(**inputs).logits, base)
        shake(model)
        save_adapter(model, tmp_path)
        adapted = model(**inputs).logits
        assert relative_error(adapted, base) > 1e-4
        theirs = peft.PeftModel.from_pretrained(tiny_of(kind), tmp_path)
        assert relative_error(theirs(**inputs).logits, adapted) < 1e-4
