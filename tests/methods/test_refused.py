"""What is refused before anything changes: settings that are wrong or do not fit the model, and files that do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.adapters.folders import edit_config
from tests.errors import refused
from tests.tiny import shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, graft, load_adapter, save_adapter
from tsugiki.lora import is_grafted
from tsugiki.lowbit import quantize
from tsugiki.methods import (
    METHODS,
    BottleneckConfig,
    IA3Config,
    LNTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    SelectiveConfig,
)

Fields = dict[str, Any]
INVALID: list[tuple[Callable[..., Any], Fields, str]] = [
    (PromptTuningConfig, {"num_virtual_tokens": 0}, "^num_virtual_tokens"),
    (PromptTuningConfig, {"prompt_tuning_init": "text"}, "^prompt_tuning_init"),
    (PromptTuningConfig, {"prompt_tuning_init": "TEXT"}, "prompt_tuning_init TEXT .*prompt_tuning_init_text"),
    (PrefixTuningConfig, {"init_weights": "ones"}, "^init_weights"),
    (PrefixTuningConfig, {"init_weights": "SAMPLE_VOCAB", "prefix_projection": True}, "SAMPLE_VOCAB .*prefix_pro"),
    (PrefixTuningConfig, {"encoder_hidden_size": 0}, "^encoder_hidden_size"),
    (PromptEncoderConfig, {"encoder_reparameterization_type": "GRU"}, "^encoder_reparameterization_type"),
    (SelectiveConfig, {}, "target_parameters is empty"),
    (SelectiveConfig, {"target_parameters": "("}, "target_parameters: .* regular expression"),
    (LNTuningConfig, {"target_modules": [1]}, "^target_modules"),
    (lambda **fields: METHODS["bitfit"].configure(fields), {"target_parameters": ["weight"]}, r"is \['bias'\]"),
    (lambda **fields: METHODS["select"].configure(fields), {"r": 8}, "^r: .*target_parameters"),
    (BottleneckConfig, {"mh_adapter": False, "output_adapter": False}, "mh_adapter and output_adapter"),
    (BottleneckConfig, {"original_ln_before": True}, "original_ln_before .*mh_adapter"),
    (BottleneckConfig, {"reduction_factor": 0}, "^reduction_factor"),
    (BottleneckConfig, {"reduction_factor": {"default": -1}}, "reduction_factor.default"),
    (BottleneckConfig, {"non_linearity": "sine"}, "^non_linearity.*relu.*sine"),
    (BottleneckConfig, {"init_weights": "houlsby"}, "^init_weights.*mam_adapter.*houlsby"),
    (BottleneckConfig, {"scaling": -1e24}, "^scaling.*1000000"),
    (BottleneckConfig, {"dropout": 1}, "^dropout"),
    (BottleneckConfig, {"leave_out": "0"}, "^leave_out"),
    (IA3Config, {"target_modules": ["a"], "feedforward_modules": ["a", "b"]}, "feedforward_modules .*b.* target_mod"),
]


@pytest.mark.parametrize(("make", "fields", "said"), INVALID)
def test_invalid_settings(make: Callable[..., Any], fields: Fields, said: str):
    with refused(said):
        make(**fields)


BITFIT, HEAD = (METHODS[name].configure({}) for name in ("bitfit", "head"))
PFEIFFER = METHODS["pfeiffer"].configure
PROMPT = PromptTuningConfig(5)
MODELS: dict[str, Callable[[], Any]] = {
    "plain": lambda: nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)),
    "int8": lambda: quantize(tiny_model()),
    "encoder": lambda: tiny_of("bert", is_decoder=False),
    "t5": lambda: tiny_of("t5", "seq2seq"),
    "mamba": lambda: tiny_of("mamba"),
}
UNFIT: list[tuple[str, Any, str]] = [
    ("gpt2", LoraConfig(init_lora_weights="pissa", target_modules=["wte"]), "'pissa' .*linear.* transformer.wte.*Emb"),
    ("gpt2", LoraConfig(init_lora_weights="pissa", r=33), r"transformer.h.0.attn.c_attn .*32 .*33"),
    ("gpt2", LoraConfig(init_lora_weights="mica"), "mica.*PEFT"),
    ("gpt2", IA3Config(target_modules=["ln_1"]), "ln_1.*LayerNorm"),
    ("plain", IA3Config(), "Sequential.*target_modules"),
    ("gpt2", PFEIFFER({"feedforward_modules": ["feed"]}), r"feedforward_modules=\['feed'\]"),
    ("gpt2", PFEIFFER({"reduction_factor": {"0": 4}}), r"reduction_factor .*transformer\.h\.1"),
    ("gpt2", PFEIFFER({"feedforward_modules": ["lm_head"]}), "lm_head .*block"),
    ("plain", PFEIFFER({}), "Sequential.*feedforward_modules"),
    ("llama", BITFIT, "target_parameters=bias .* down_proj.weight, embed"),
    ("gpt2", SelectiveConfig(["h.9.ln_1.bias"]), "h.9.ln_1.bias .* c_attn"),
    ("gpt2", SelectiveConfig("ln_f.bias"), "regular expression"),
    ("gpt2", SelectiveConfig(".*"), r"target_parameters=\.\* .*method full"),
    ("gpt2", LNTuningConfig(["norm"]), "target_modules=norm .* ln_1, ln_2, ln_f"),
    ("gpt2", LNTuningConfig(["attn"]), "transformer.h.0.attn.*GPT2Attention"),
    ("plain", HEAD, "Sequential .*output head"),
    ("plain", LNTuningConfig(), "no normalisation layer"),
    ("int8", HEAD, "head.*quantised"),
    ("gpt2", PromptTuningConfig(33), "64.* 32"),
    ("encoder", PROMPT, "BertLMHeadModel.*KV cache"),
    ("mamba", PROMPT, "MambaForCausalLM.*KV cache"),
    ("t5", PROMPT, "T5ForConditionalGeneration.*KV cache"),
]


@pytest.mark.parametrize(("kind", "config", "said"), UNFIT)
def test_settings_that_do_not_fit_the_model(kind: str, config: Any, said: str):
    model = MODELS[kind]() if kind in MODELS else tiny_model(kind)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with refused(said):
        graft(model, config)
    assert not is_grafted(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


FILES: dict[str, Any] = {
    "prompt": PROMPT,
    "mlp": PromptEncoderConfig(5, encoder_hidden_size=12),
    "houlsby": METHODS["houlsby"].configure({"reduction_factor": 4}),
    "ia3": IA3Config(),
    "norms": LNTuningConfig(),
}
MISFITS: list[tuple[str, Fields, str]] = [
    ("prompt", {"num_virtual_tokens": 4}, r"\[5, 32\], expected \[4, 32\]"),
    ("prompt", {"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head'"),
    ("mlp", {"encoder_hidden_size": 13}, r"tsugiki.network.0.weight is \[12, 32\], expected \[13, 32\]"),
    ("mlp", {"peft_type": "PROMPT_TUNING"}, "cannot tell whether it changes the result"),
    ("houlsby", {"peft_type": "TSUGIKI_OTHER"}, "'TSUGIKI_OTHER'"),
    ("houlsby", {"ln_after": True}, "ln_after=True"),
    ("houlsby", {"mh_adapter": False}, "is not part of the adapter"),
    ("houlsby", {"leave_out": [0, 1]}, r"outside of blocks \[0, 1\]"),
    ("ia3", {"a_field_of_the_future": 3}, "a_field_of_the_future=3"),
    ("ia3", {"peft_type": "LORA"}, "feedforward_modules="),
    ("ia3", {"feedforward_modules": []}, r"\[1, 128\], expected \[32, 1\]"),
    ("ia3", {"target_modules": ["c_attn", "mlp.c_proj", "c_fc"]}, "is missing"),
    ("ia3", {"target_modules": ["k_proj", "mlp.c_proj"], "exclude_modules": ["c_proj"]}, "does not fit this model"),
]


@pytest.mark.parametrize(("method", "fields", "said"), MISFITS)
def test_a_file_that_does_not_fit(method: str, fields: Fields, said: str, tmp_path: Path):
    saved = tiny_model()
    graft(saved, FILES[method])
    save_adapter(shake(saved), tmp_path)
    edit_config(tmp_path, **fields)
    model = tiny_model()
    with refused(said):
        load_adapter(model, tmp_path)
    assert not is_grafted(model)
