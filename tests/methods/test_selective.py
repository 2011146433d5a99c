"""Selective methods: norms compared with PEFT, the others with plain training of the selected weights."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.adapters.folders import forget_digests
from tests.tiny import ids, logits, relative_error, shake, tiny_model
from tsugiki import (
    TsugikiError,
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.lora import is_grafted
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS, LNTuningConfig, SelectiveConfig
from tsugiki.training import RunConfig

NORMS = {
    "gpt2": ["ln_1", "ln_2", "ln_f"],
    "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "gemma3_text": [
        *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
        *("q_norm", "k_norm", "norm"),
    ],
}
BITFIT, HEAD = METHODS["bitfit"].configure({}), METHODS["head"].configure({})
LAST_BLOCK = SelectiveConfig(r".*\.(h|layers)\.1\..*")
CONFIGS: dict[str, Any] = {"bitfit": BITFIT, "norms": LNTuningConfig(), "head": HEAD, "select": LAST_BLOCK}
CASES = [
    ("gpt2", "bitfit"),
    ("gpt2", "norms"),
    ("llama", "head"),
    ("gemma3_text", "norms"),
    ("llama", "select"),
    ("gpt2", "head"),
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_only_the_selected_parameters_train():
    names = {name for name, _ in tiny_model().named_parameters()}
    wanted = {
        "bitfit": {name for name in names if name.endswith("bias")},
        "norms": {name for name in names if ".ln_" in name},
        "head": {"lm_head.weight"},
        "select": {name for name in names if ".h.1." in name},
    }
    # Each of the two blocks has biases of c_attn (96), two c_proj (32), c_fc (128) and two norms (32). One more norm.
    counts = {"bitfit": 2 * (96 + 32 + 32 + 128 + 64) + 32, "norms": 2 * 128 + 64, "head": 96 * 32}
    for name, config in CONFIGS.items():
        model = tiny_model()
        graft(model, config)
        trained = trainable_parameters(model)
        assert set(trained) == wanted[name]
        assert sum(p.numel() for p in trained.values()) == counts.get(name, sum(p.numel() for p in trained.values()))
        assert all(p.dtype == torch.float32 for p in trained.values())
        ungraft(model)
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (SelectiveConfig(["ln_f.weight"]), {"transformer.ln_f.weight"}),
        (SelectiveConfig(["c_attn.bias"]), {f"transformer.h.{i}.attn.c_attn.bias" for i in (0, 1)}),
        (SelectiveConfig(r".*h\.0\.ln_1\..*"), {"transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias"}),
        (LNTuningConfig(["ln_f"]), {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        (LNTuningConfig(exclude_modules=r".*\.h\..*"), {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
    ],
)
def test_which_parameters_a_pattern_selects(config: Any, found: set[str]):
    assert set(active_adapter(graft(tiny_model(), config)).copies) == found


@pytest.mark.parametrize("kind", NORMS)
def test_files_of_norms_are_exchanged_with_peft_both_ways(kind: str, tmp_path: Path):
    ours = tiny_model(kind)
    base = logits(ours)
    graft(ours, LNTuningConfig())
    adapted = logits(shake(ours))
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours").eval()
    assert relative_error(adapted, base) > 1e-2
    assert relative_error(logits(theirs), adapted) < 1e-5

    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS[kind])
    theirs = shake(peft.get_peft_model(tiny_model(kind), config).eval(), seed=5)
    theirs.save_pretrained(tmp_path / "theirs")
    model = tiny_model(kind)
    load_adapter(model, tmp_path / "theirs")
    assert relative_error(logits(model), logits(theirs)) < 1e-5
    stored = [set(load_file(tmp_path / who / "adapter_model.safetensors")) for who in ("ours", "theirs")]
    assert stored[0] == stored[1]
    fields = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    assert set(fields[0]["target_modules"]) == set(NORMS[kind])
    assert set(fields[0]) <= set(fields[1])
    merged = dict(ungraft(merge(model)).named_parameters())
    for name, p in theirs.merge_and_unload().named_parameters():
        assert torch.equal(p, merged[name]), name


@pytest.mark.parametrize("kind", NORMS)
def test_a_training_step_of_norms_equals_pefts(kind: str, tmp_path: Path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS[kind])
    theirs, ours = peft.get_peft_model(tiny_model(kind), config).eval(), tiny_model(kind)
    graft(ours, LNTuningConfig())
    gradients = [one_step(model) for model in (ours, theirs)]
    assert len(gradients[0]) == len(gradients[1])
    for name, gradient in gradients[0].items():
        layer, _, attribute = name.rpartition(".")
        other = gradients[1][f"base_model.model.{layer}.ln_tuning_layers.default.{attribute}"]
        assert relative_error(gradient, other) < 1e-5, name
    save_adapter(ours, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    mine, other = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    for key, tensor in mine.items():
        assert relative_error(tensor, other[key]) < 1e-5, key


def one_step(model: Any) -> dict[str, torch.Tensor]:
    """Do one AdamW step on the trainable parameters and return their gradients."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model(input_ids=ids(), labels=ids()).loss.backward()
    torch.optim.AdamW(trained.values(), lr=1e-2).step()
    return {name: p.grad for name, p in trained.items()}


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "norms"])
def test_a_training_step_equals_that_of_the_weights_themselves(kind: str, name: str):
    ours, plain = tiny_model(kind), tiny_model(kind)
    if name == "head":
        for model in (ours, plain):
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    adapter = active_adapter(graft(ours, CONFIGS[name]))
    for path, p in plain.named_parameters():
        p.requires_grad_(path in adapter.copies)
    mine, theirs = one_step(ours.eval()), one_step(plain.eval())
    assert set(mine) == set(theirs)
    for path, gradient in mine.items():
        assert relative_error(gradient, theirs[path]) < 1e-5, path
    after = dict(plain.named_parameters())
    for path, p in ours.named_parameters():
        assert relative_error(p, after[path]) < 1e-5, path


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_merged_model_is_saved_with_the_ties_that_it_has(kind: str, name: str, tmp_path: Path):
    model = tiny_model(kind)
    graft(model, CONFIGS[name])
    adapted = logits(shake(model))
    assert torch.equal(logits(merge(model)), adapted)
    ungraft(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative_error(logits(again), adapted) < 1e-6
    tied = kind != "llama" and name != "head"
    assert again.config.tie_word_embeddings is tied
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is tied


def test_a_tied_head_trains_as_a_copy_with_a_warning():
    model = tiny_model()
    with pytest.warns(UserWarning, match="lm_head.*transformer.wte.weight"):
        graft(model, HEAD)
    assert model.lm_head.weight is not model.transformer.wte.weight
    shake(model)
    with pytest.warns(UserWarning, match="two weights"):
        merge(model)
    assert model.config.tie_word_embeddings is False
    unmerge(model)
    assert model.config.tie_word_embeddings is True


def test_a_shared_weight_stays_shared_if_all_its_names_are_selected(tmp_path: Path):
    model = tiny_model()
    graft(model, SelectiveConfig(["wte.weight", "lm_head.weight"]))
    assert model.lm_head.weight is model.transformer.wte.weight
    adapted = logits(shake(model))
    save_adapter(model, tmp_path / "adapter")
    assert list(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) == [
        "base_model.model.transformer.wte.weight"
    ]
    again = tiny_model()
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), adapted)
    ungraft(merge(again))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert again.config.tie_word_embeddings is True


def test_an_adapter_loaded_while_another_is_active_is_built_from_the_base(tmp_path: Path):
    model = tiny_model()
    graft(model, SelectiveConfig(["ln_f.weight"]))
    one = logits(shake(model))
    save_adapter(model, tmp_path)
    other = tiny_model()
    graft(other, BITFIT, "bitfit")
    two = logits(shake(other))
    load_adapter(other, tmp_path, "loaded")
    assert torch.equal(logits(other), one)
    set_adapter(other, "bitfit")
    assert torch.equal(logits(other), two)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_16_bit_base_computes_with_float32_copies(kind: str, name: str, tmp_path: Path):
    model = tiny_model(kind).bfloat16()
    base = logits(model)
    graft(model, CONFIGS[name])
    assert torch.equal(logits(model), base), "bit-identical"
    assert all(p.dtype == torch.float32 for p in trainable_parameters(model).values())
    model.train()
    gradients = one_step(model)
    assert all(gradient.dtype == torch.float32 and gradient.any() for gradient in gradients.values())
    adapted = logits(shake(model))
    assert adapted.dtype == torch.bfloat16
    assert relative_error(adapted, base) > 1e-2
    save_adapter(model, tmp_path)
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "adapter_model.safetensors").values())
    assert torch.equal(logits(merge(model)), adapted)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(unmerge(model)), adapted)
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    merged = ungraft(merge(model))
    assert not [name for name, module in merged.named_modules() if "forward" in vars(module)]


def test_any_module_can_be_grafted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 3, 5, 5)
    before = model.eval()(x)
    graft(model, LNTuningConfig())
    assert set(trainable_parameters(model)) == {"1.weight", "1.bias"}
    assert torch.equal(model(x), before)
    assert not torch.equal(shake(model)(x), before)
    assert torch.equal(ungraft(model)(x), before)


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("llama", BITFIT, "target_parameters=bias .* down_proj.weight, embed"),
        ("gpt2", SelectiveConfig(["h.9.ln_1.bias"]), "h.9.ln_1.bias .* c_attn"),
        ("gpt2", SelectiveConfig("ln_f.bias"), "regular expression"),
        ("gpt2", SelectiveConfig(".*"), r"target_parameters=\.\* .*method full"),
        ("gpt2", SelectiveConfig(["weight", "bias"]), "method full"),
        ("gpt2", LNTuningConfig(["norm"]), "target_modules=norm .* ln_1, ln_2, ln_f"),
        ("gpt2", LNTuningConfig(["attn"]), "transformer.h.0.attn.*GPT2Attention"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_the_model_is_unchanged(kind: str, config: Any, said: str):
    model = tiny_model(kind)
    with pytest.raises(TsugikiError, match=said):
        graft(model, config)
    assert not is_grafted(model)
    assert all(p.requires_grad for p in model.parameters())


def test_models_without_the_selected_parameters():
    plain = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    for config, said in (
        (HEAD, "Sequential .*output head"),
        (LNTuningConfig(), "no normalisation layer"),
        (BITFIT, "0.weight, 1.weight"),
    ):
        with pytest.raises(TsugikiError, match=said):
            graft(plain, config)
    with pytest.raises(TsugikiError, match="head.*quantised"):
        graft(quantize(tiny_model()), HEAD)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SelectiveConfig(), "target_parameters is empty"),
        (lambda: SelectiveConfig([]), "target_parameters is empty"),
        (lambda: SelectiveConfig("("), "target_parameters: .* regular expression"),
        (lambda: SelectiveConfig(7), "^target_parameters"),  # type: ignore[arg-type]
        (lambda: LNTuningConfig([1]), "^target_modules"),  # type: ignore[list-item]
        (lambda: METHODS["bitfit"].configure({"target_parameters": ["weight"]}), "target_parameters is \\['bias'\\]"),
        (lambda: METHODS["select"].configure({"r": 8}), "^r: .*target_parameters"),
    ],
)
def test_invalid_settings_are_refused(make: Any, said: str):
    with pytest.raises(TsugikiError, match=said):
        make()


def test_a_file_of_one_method_is_not_loaded_as_another(tmp_path: Path):
    model = tiny_model()
    graft(model, LNTuningConfig())
    save_adapter(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    forget_digests(tmp_path)
    for change, said in (
        ({"peft_type": "LORA"}, "does not fit this model"),
        ({"peft_type": "TSUGIKI_SELECTIVE"}, "target_modules="),
        ({"modules_to_save": ["wte"]}, "modules_to_save names 'wte'"),
    ):
        path.write_text(json.dumps(fields | change))
        fresh = tiny_model()
        with pytest.raises(TsugikiError, match=said):
            load_adapter(fresh, tmp_path)
        assert not is_grafted(fresh)


@pytest.mark.parametrize("base_dtype", ["bf16", "int8"])
def test_a_run_on_a_16_bit_or_int8_base_is_refused(base_dtype: str):
    with pytest.raises(ValueError, match=rf"base_dtype {base_dtype}"):
        RunConfig(model="-", data="-", out="-", method="bitfit", base_dtype=base_dtype)  # type: ignore[arg-type]
