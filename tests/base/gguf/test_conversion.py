"""What a GGUF file is converted to, compared with the model that it was written from."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from tests.base.gguf.files import TOKENS, Kind, tiny_base, write_gguf
from tests.errors import assert_refused
from tests.tiny import ids, logits
from tsugiki.base import VERIFIED, load_meta_model, load_model, load_tokenizer, local_folder
from tsugiki.base.resolve import model_folder

KINDS = {"gemma3": "gemma3_text"}
BLOCK = {"intermediate_size": 64}
"""Q8_0 and Q4_1 quantise blocks of 32 values."""


def quantised(model: Any, kind: Kind) -> Any:
    """The model with the values that a file of this type holds."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                across = name.startswith("transformer.h.")  # Conv1D's weight is [in, out]; blocks are along the inputs
                rows = (parameter.T if across else parameter).contiguous().numpy()
                values = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind))
                parameter.copy_(values.T if across else values)
    return model


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [*((one, {}) for one in VERIFIED), *((one, {"tie_word_embeddings": False}) for one in ("llama", "gpt2"))],
)
def test_a_float32_file_gives_bit_identical_logits(architecture: str, settings: dict[str, Any], tmp_path: Path):
    model = tiny_base(KINDS.get(architecture, architecture), **settings)
    path = str(write_gguf(tmp_path / "tiny.gguf", model))
    tokens = ids(2, 40, len(TOKENS))
    assert torch.equal(logits(load_model(path), tokens), logits(model, tokens))
    assert load_meta_model(path).config.model_type == model.config.model_type


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", Kind.Q8_0), ("gpt2", Kind.Q4_1), ("gpt2", Kind.F16), ("llama", Kind.BF16)],
)
def test_quantised_tensors_are_dequantised_and_stored_in_16_bits(architecture: str, kind: Kind, tmp_path: Path):
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_base(architecture, **BLOCK), kind))
    dtype = torch.bfloat16 if kind == Kind.BF16 else torch.float16
    assert {tensor.dtype for tensor in load_file(model_folder(path) / "model.safetensors").values()} == {dtype}
    expected = quantised(tiny_base(architecture, **BLOCK), kind)
    for parameter in expected.parameters():
        parameter.data = parameter.data.to(dtype).float()
    assert torch.equal(logits(load_model(path)), logits(expected))


def test_the_tokenizer_of_the_file(tmp_path: Path):
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    settings = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 5}
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama"), settings=settings))
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template == template
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "[user]a"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert tokenizer.convert_ids_to_tokens(tokenizer(" the cat<|endoftext|>").input_ids) == [
        *("Ġthe", "Ġ", "c", "a", "t", "<|endoftext|>")
    ]
    for text in ("吾輩は猫である。\n", "  two  spaces 🐈"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    folder = local_folder(path)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 5]
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == {token: i for i, token in enumerate(TOKENS)}


def test_other_files_in_the_same_folder_are_not_read(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "another", "model_max_length": 7}')
    (tmp_path / "chat_template.jinja").write_text("another")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9, "max_length": 7}')
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama")))
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length > 10**6
    assert load_model(path).generation_config.eos_token_id == [0]


def test_digits_are_split_if_the_file_says_so(tmp_path: Path):
    for split, tokens in (("gpt-2", ["123", "Ġ1"]), ("smollm", ["1", "2", "3", "Ġ", "1"])):
        model = tiny_base("llama")
        path = str(write_gguf(tmp_path / split, model, settings={"tokenizer.ggml.pre": split}))
        assert load_tokenizer(path).tokenize("123 1") == tokens
    settings = {"tokenizer.ggml.pre": "of-the-future"}
    with pytest.warns(UserWarning, match=r"\(of-the-future\)"):
        load_tokenizer(str(write_gguf(tmp_path / "new", tiny_base("llama"), settings=settings)))


@pytest.mark.parametrize(("said", "begins"), [(True, True), (False, False), (None, False)])
def test_a_text_begins_with_bos_if_the_file_says_so(said: bool | None, begins: bool, tmp_path: Path):
    settings = {"tokenizer.ggml.add_bos_token": said, "tokenizer.ggml.bos_token_id": 7}
    path = str(write_gguf(tmp_path / "tiny.gguf", tiny_base("llama"), settings=settings))
    assert (load_tokenizer(path)("a").input_ids[0] == 7) is begins


@pytest.mark.parametrize(
    ("settings", "extra", "message"),
    [
        ({"general.architecture": "of-the-future"}, {}, r"architecture \(of-the-future\).* llama"),
        ({"general.type": "adapter"}, {}, "adapter.*--model"),
        ({"split.count": 3, "split.no": 0}, {}, r"part 1 of 3.*llama-gguf-split --merge"),
        ({"tokenizer.ggml.tokens": None}, {}, "it has no tokenizer"),
        ({}, {"odd": np.zeros(32, np.int8)}, "I8.*odd"),
        ({}, {"blk.0.attn_q.bias": np.zeros(32, np.float32)}, "blk.0.attn_q.bias"),
        ({"llama.rope.scaling.type": "yarn"}, {}, "yarn"),
        ({"llama.block_count": 3}, {}, "model.layers.2"),
        ({"llama.embedding_length": 64}, {}, "cannot be read"),
    ],
)
def test_files_that_cannot_be_a_base(settings: Any, extra: Any, message: str, tmp_path: Path, cache: Path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_base("llama"), settings=settings, extra=extra)
    for load in (load_model, load_tokenizer, load_meta_model):
        assert_refused(message, load, str(path))
    assert not [entry for entry in cache.glob("*") if entry.name not in ("known", ".lock")]
