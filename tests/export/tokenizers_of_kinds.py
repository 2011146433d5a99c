"""Small tokenizers of the kinds that released models have, trained on a few lines."""

import json
from pathlib import Path
from typing import Any

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import TEXT, byte_tokenizer
from tsugiki.base import load_tokenizer
from tsugiki.export import PRE_TOKENIZERS, PROMPTS, add_vocabulary

_TEXTS = [TEXT, *PROMPTS * 3]
CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}"
    "{% endif %}<turn>{{ message['role'] + '\n' + message['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


def bytes_bpe(*patterns: str, use_regex: bool = False, size: int = 700, **special: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `patterns` are regular expressions by which text is split first, or "digits"."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    steps = [digits if one == "digits" else pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer, size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return _whole(tokenizer, **special)


def sentencepiece_bpe(prefix: bool = False, size: int = 700, **special: Any) -> PreTrainedTokenizerFast:
    """BPE over characters with ▁ for spaces and byte fallback, as in Gemma; with a prefix as in Llama 2."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    # Pieces are words with their space; every pair inside a piece is then a merge, as in SentencePiece's files.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _train(tokenizer, trainers.BpeTrainer, size, bytes=True)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    return _whole(Tokenizer.from_str(json.dumps(fields)), unk_token="<unk>", **special)


def unigram(size: int = 700, **special: Any) -> PreTrainedTokenizerFast:
    """SentencePiece's unigram model, as in T5 and Japanese GPT-2 models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    _train(tokenizer, trainers.UnigramTrainer, size, unk_token="<unk>")
    return _whole(tokenizer, unk_token="<unk>", **special)


def _train(tokenizer: Tokenizer, trainer: Any, size: int, bytes: bool = False, **settings: Any) -> None:
    special = ["<unk>", "<bos>", "<eos>", "<turn>", "<end>"] + [f"<0x{i:02X}>" for i in range(256) if bytes]
    given = {"vocab_size": size, "special_tokens": special, "show_progress": False, **settings}
    tokenizer.train_from_iterator(_TEXTS, trainer(**given))


def _whole(
    tokenizer: Tokenizer, *, begin: bool = False, chat: bool = False, unk_token: str | None = None
) -> PreTrainedTokenizerFast:
    if begin:
        bos = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [bos])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "additional_special_tokens": ["<turn>", "<end>"]}
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk_token, **names)
    whole.add_tokens([AddedToken("<!-- -->", normalized=False)])
    if chat:
        whole.chat_template = CHAT
    return whole


def byte_level(steps: tuple[str, ...], **special: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits text by the steps of a key of `PRE_TOKENIZERS`."""
    return bytes_bpe(*(step for step in steps if step != "bytes"), use_regex="bytes" in steps, **special)


KINDS = {
    **{name: lambda steps=steps: byte_level(steps) for steps, name in PRE_TOKENIZERS.items()},
    "bytes alone": byte_tokenizer,
    "chat": lambda: byte_level(("bytes",), chat=True, begin=True),
    "gemma": lambda: sentencepiece_bpe(begin=True),
    "gemma, chat": lambda: sentencepiece_bpe(begin=True, chat=True),
    "llama 2": lambda: sentencepiece_bpe(prefix=True, begin=True),
    "embedded": lambda: load_tokenizer("embedded"),
}


def write_tokenizer(path: Path, vocabulary: Any) -> Path:
    """A GGUF file with a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
