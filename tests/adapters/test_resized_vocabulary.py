"""Adapters of a base to whose vocabulary words were added: the files of PEFT and ours have the new rows."""

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.errors import assert_refused
from tests.tiny import relative_error, save_grafted, shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    use_fast_paths,
)
from tsugiki.adapters import check_can_save
from tsugiki.methods import BottleneckConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def base_model(kind: str) -> Any:
    tied = {"vocab_size": 96, "d_model": 32, "tie_word_embeddings": True, "decoder_start_token_id": 0}
    return tiny_of("t5", "seq2seq", **tied) if kind == "t5" else tiny_model(kind)


def resized(folder: Path, seed: int) -> Any:
    """The base in a folder with four more tokens, whose rows are random."""
    auto = AutoModelForSeq2SeqLM if "t5" in (folder / "config.json").read_text() else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    model.resize_token_embeddings(100, mean_resizing=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[96:] = torch.randn(4, 32)
    return model.eval()


NEW_TOKENS = torch.tensor([[5, 97, 3, 99, 98, 96]])


def new_logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": NEW_TOKENS.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=NEW_TOKENS, **more).logits


RESIZED: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("gpt2", {"target_modules": ["c_attn", "c_proj"]}),
    "untied": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "tied in three places": ("t5", {"target_modules": ["q", "v"]}),
    "head saved": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
    "both saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding grafted": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "embedding grafted, DoRA": ("llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
}


@pytest.mark.parametrize("case", RESIZED)
@pytest.mark.parametrize("by", ["peft", "us"])
def test_the_rows_of_a_resized_vocabulary_are_stored(by: str, case: str, tmp_path: Path):
    kind, fields = RESIZED[case]
    base_model(kind).save_pretrained(tmp_path / "base")
    model = resized(tmp_path / "base", 1)
    if by == "peft":
        # PEFT leaves embeddings out that are not grafted themselves as soon as one is.
        adapted = shake(peft.get_peft_model(model, peft.LoraConfig(r=4, **fields))).eval()
        adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True if "DoRA" not in case else "auto")
    else:
        adapted = save_grafted(tmp_path / "adapter", model, LoraConfig(r=4, **fields))
    expected = new_logits(adapted)
    in_peft = peft.PeftModel.from_pretrained(resized(tmp_path / "base", 2), tmp_path / "adapter").eval()
    assert relative_error(new_logits(in_peft), expected) < 1e-5 or (by, case) == ("peft", "embedding grafted, DoRA")

    other = resized(tmp_path / "base", 2)
    graft(other, LoraConfig(r=2, target_modules=fields["target_modules"][:1]), "another")
    with disable_adapter(other):
        base = new_logits(other)
    load_adapter(other, tmp_path / "adapter")
    assert relative_error(new_logits(other), new_logits(in_peft)) < 1e-5
    assert not [name for name in trainable_parameters(other) if not re.search("lora|lm_head|embed", name)]
    with disable_adapter(other):
        assert torch.equal(new_logits(other), base)
    save_adapter(other, tmp_path / "again")
    assert relative_error(new_logits(ungraft(merge(other))), new_logits(in_peft)) < 1e-5
    third = load_adapter(resized(tmp_path / "base", 3), tmp_path / "again")
    assert relative_error(new_logits(third), new_logits(in_peft)) < 1e-5
    plain = type(model).from_pretrained(tmp_path / "base")
    said = "resize_token_embeddings.100." if by == "peft" else "vocab_size is 100 and 96"
    assert_refused(said, load_adapter, plain, tmp_path / "adapter")


def test_a_weight_that_embedding_and_head_share_is_stored_once_and_a_wrong_copy_refused(tmp_path: Path):
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    save_grafted(tmp_path / "adapter", resized(tmp_path / "base", 1), LoraConfig(target_modules=["c_attn"]))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    assert [tensor.shape for key, tensor in tensors.items() if "lora" not in key] == [(100, 32)]
    theirs = shake(peft.get_peft_model(resized(tmp_path / "base", 1), peft.LoraConfig(target_modules=["c_attn"])))
    theirs.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "tsugiki.json").unlink()
    tensors = load_file(file)
    tensors["base_model.model.lm_head.weight"][3] += 1
    save_file(tensors, file)
    assert_refused("lm_head", load_adapter, resized(tmp_path / "base", 2), tmp_path / "adapter")


def test_only_a_lora_stores_a_resized_vocabulary(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = graft(resized(tmp_path / "base", 1), BottleneckConfig())
    assert_refused("resized from 96 to 100", check_can_save, model)
    assert_refused("resized from 96 to 100", save_adapter, shake(model), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("kind", "on_disk"), [("gpt2", True), ("llama", False)])
def test_a_vocabulary_resized_after_the_graft_is_stored_as_peft_does(kind: str, on_disk: bool, tmp_path: Path):
    tiny_model(kind).save_pretrained(tmp_path / "base")
    config = {"r": 4, "target_modules": ["c_attn" if kind == "gpt2" else "q_proj"]}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base") if on_disk else tiny_model(kind)
    graft(model, LoraConfig(**config))
    use_fast_paths(model)
    torch.manual_seed(1)
    model.resize_token_embeddings(100)
    assert set(trainable_parameters(model)) == {name for name in trainable_parameters(model) if "lora" in name}
    expected = new_logits(shake(model).eval())
    save_adapter(model, tmp_path / "ours")

    wrapped = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft.LoraConfig(**config))
    wrapped.resize_token_embeddings(100)
    wrapped.save_pretrained(tmp_path / "theirs")
    tables = [
        {key for key in load_file(tmp_path / who / "adapter_model.safetensors") if "lora" not in key}
        for who in ("ours", "theirs")
    ]
    assert tables[0] == (tables[1] if kind == "llama" else {"base_model.model.transformer.wte.weight"})
    in_peft = peft.PeftModel.from_pretrained(resized(tmp_path / "base", 2), tmp_path / "ours").eval()
    assert relative_error(new_logits(in_peft), expected) < 1e-5
    other = load_adapter(resized(tmp_path / "base", 3), tmp_path / "ours")
    assert relative_error(new_logits(other), expected) < 1e-5
    assert len(ungraft(model).get_input_embeddings().weight) == 100
