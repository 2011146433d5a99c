"""The layers that target modules select."""

from pathlib import Path

import peft
import pytest
import torch
import transformers

from tests.files import json_of
from tests.tiny import tiny_model
from tsugiki import LoraConfig, active_adapter, graft, save_adapter


def test_without_targets_the_other_settings_still_choose():
    model = tiny_model("llama")
    adapter = active_adapter(graft(model, LoraConfig(r=2, layers_to_transform=[1], exclude_modules=["k_proj"])))
    names = {f"self_attn.{name}_proj" for name in "qvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert set(adapter.pairs) == {f"model.layers.1.{name}" for name in names}


def test_names_in_the_file_are_longer_where_their_ends_select_more(tmp_path: Path):
    config = transformers.CTRLConfig(vocab_size=96, n_embd=32, dff=48, n_layer=3, n_head=4, n_positions=64)
    torch.manual_seed(0)
    model = transformers.CTRLLMHeadModel(config)
    graft(model, LoraConfig(r=2))
    save_adapter(model, tmp_path)
    written = json_of(tmp_path / "adapter_config.json")["target_modules"]
    assert set(written) == {"Wq", "Wk", "Wv", "dense", "ffn.0", "ffn.2"}
    theirs = peft.PeftModel.from_pretrained(transformers.CTRLLMHeadModel(config), tmp_path)
    assert len([name for name, _ in theirs.named_parameters() if "lora_A" in name]) == 18


SECOND_BLOCK = {"1.attn.c_proj", "1.mlp.c_proj"}


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LoraConfig(target_modules=["attn.c_proj"]), {"0.attn.c_proj", "1.attn.c_proj"}),
        (LoraConfig(target_modules=r".*\.1\..*c_proj"), SECOND_BLOCK),
        (LoraConfig(target_modules=["c_proj"], layers_to_transform=1, layers_pattern="h"), SECOND_BLOCK),
        (LoraConfig(target_modules=["c_proj"], exclude_modules=["mlp.c_proj"]), {"0.attn.c_proj", "1.attn.c_proj"}),
        (LoraConfig(target_modules=["c_proj"], exclude_modules=r".*\.0\..*"), SECOND_BLOCK),
        (
            LoraConfig(target_modules="all-linear"),
            {f"{i}.{name}" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
        ),
    ],
)
def test_targets(config: LoraConfig, layers: set[str]):
    adapter = active_adapter(graft(tiny_model(), config))
    assert set(adapter.pairs) == {f"transformer.h.{name}" for name in layers}
