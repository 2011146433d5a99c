"""Loading of base models by name, and the errors for names and folders that hold none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    T5Tokenizer,
)

import tsugiki.base.streaming  # noqa: F401 - before a test replaces what it imports
from tests.errors import assert_refused
from tests.files import json_of
from tests.tiny import DIFFERENT, grafted, ids, logits, relative_error, save_tiny, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, graft
from tsugiki.base import load_model, load_tokenizer, local_folder, placeholder_model


def test_a_folder_loads_in_float32_and_keeps_its_name(tmp_path: Path):
    folder = save_tiny(tmp_path / "base")
    tiny_model(vocab_size=257).half().save_pretrained(folder)
    model = load_model(folder)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.name_or_path == folder
    assert logits(model).isfinite().all()
    assert load_tokenizer(folder).eos_token_id == 0
    assert local_folder(folder) == Path(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_mixture_of_experts_is_loaded_in_the_dtype_of_its_files_and_they_leave_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved = tiny_of("qwen3_moe", moe_intermediate_size=96).to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "bf16")
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert all(torch.equal(model.get_parameter(name), value) for name, value in saved.named_parameters())
    loaded_in = list[torch.dtype]()
    monkeypatch.setattr("tsugiki.lowbit.quantization.quantize", lambda model, *_: loaded_in.append(model.dtype))
    load_model(str(tmp_path), "int8")
    assert loaded_in == [torch.bfloat16]


def test_a_classifier_is_called_one_and_not_incomplete(tmp_path: Path):
    config = BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    assert_refused("type BertForSequenceClassification, which is no causal language", load_model, str(tmp_path))


def test_broken_models_give_one_sentence(base: Path):
    config = json_of(base / "config.json")

    def refused(said: str, **fields: Any) -> None:
        (base / "config.json").write_text(json.dumps(config | fields))
        assert_refused(said, load_model, str(base))

    refused("type plamo2, which transformers .* does not know", model_type="plamo2")
    refused("type vit, which is no causal language", model_type="vit")
    (base / "model.safetensors").write_bytes(b"\x01")
    refused(r"model.safetensors is broken")
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    refused("no safetensors|cannot be loaded")
    assert_refused("'stored'.*int8, nf4", load_model, "embedded", "stored")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", DIFFERENT)
def test_every_architecture_loads_and_its_placeholder_has_the_shapes_and_takes_no_memory(kind: str, tmp_path: Path):
    folder = save_tiny(tmp_path / "base", kind)
    model, placeholder = load_model(folder), placeholder_model(folder)
    assert torch.equal(logits(model), logits(tiny_model(kind, vocab_size=257)))
    assert placeholder.name_or_path == folder
    tensors = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in placeholder.state_dict().items()} == tensors
    assert {t.untyped_storage().nbytes() for t in placeholder.state_dict().values()} <= {4, 8}

    def shared(of: Any) -> set[frozenset[str]]:
        named = list(of.named_parameters(remove_duplicate=False))
        return {frozenset(name for name, p in named if p is one) for _, one in named}

    assert shared(placeholder) == shared(model)


def test_the_embedded_base_is_complete_and_its_tokenizer_is_lossless():
    model, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    assert model.name_or_path == "embedded"
    assert local_folder("embedded") is not None
    assert sum(file.stat().st_size for file in local_folder("embedded").iterdir()) <= 16_000_000
    for text in ("\u3000舊い國の\n\n 書物、emoji 🐈 と\t<0x41> & café", "  ", "𠮷野家", "ﾊﾝｶｸ\r\n"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert max(ids) < model.config.vocab_size


def test_rwkv_computes_the_same_in_training_and_evaluation(tmp_path: Path):
    config = AutoConfig.for_model(
        "rwkv", vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, rescale_every=2
    )
    torch.manual_seed(0)
    saved = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in saved.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    saved.save_pretrained(tmp_path / "rwkv")
    assert_refused("rescale_every", graft, saved, LoraConfig(target_modules="all-linear"))
    assert all(parameter.requires_grad for parameter in saved.parameters())
    model = load_model(str(tmp_path / "rwkv"))
    assert relative_error(logits(model), logits(saved)) < 1e-5
    grafted(model, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        trained = model.train()(input_ids=ids()).logits
    assert relative_error(logits(model.eval()), trained) < 1e-6


def test_a_character_that_a_unigram_vocabulary_lacks_is_its_unknown_token_and_not_the_end(tmp_path: Path):
    """rinna's Japanese GPT-2 models have the class of T5's tokenizer, whose numbers of special tokens are others."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("は", -1.0), ("a", -1.0)]
    folder = save_tiny(tmp_path / "base")
    saved = T5Tokenizer(pieces, pad_token="</s>", extra_ids=0, additional_special_tokens=[], do_lower_case=True)
    saved.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("猫は", add_special_tokens=False).input_ids == [3, 2, 4]
    assert load_tokenizer(folder)("猫はA", add_special_tokens=False).input_ids == [3, 0, 4, 5]


def test_a_tokenizer_of_sentencepiece_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch):
    (base / "tokenizer.json").rename(base / "spiece.model")
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
    assert_refused(r"tsugiki\[sentencepiece\]", load_tokenizer, str(base))
