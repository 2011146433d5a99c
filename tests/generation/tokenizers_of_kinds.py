"""Small tokenizers of the kinds that released models have, trained on a few lines."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import TEXT, byte_tokenizer
from tsugiki.base import load_tokenizer

_LINES = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3,141.59 km away!",
    "    def f(x):\n        return x_1 ** 2  # indented\n",
    "庭の古い柿の木に、今年も赤い実がなった。朝ごとに鳥が来て、一つずつ食べていく。",
    "舊字體：學校、圖書館、戀愛、櫻、澤。かなづかひ、ゐる、ゑむ、くわし。",
    "二〇二六年、第12回、3.5％、￥1,000。",
    "Ünïcödé Ελλάς кошка עברית عربى ไทย 한국어 中文",
    '<b>&amp;</b> {"key": [1, 2]} https://example.com/?a=1&b=2',
)
_TEXTS = [TEXT, *_LINES * 3]


def bytes_bpe() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return _whole(tokenizer)


def sentencepiece_bpe(prefix: bool = False) -> PreTrainedTokenizerFast:
    """BPE over characters with ▁ for spaces and byte fallback, as in Gemma; with a prefix as in Llama 2."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    # Pieces are words with their space; every pair inside a piece is then a merge, as in SentencePiece's files.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _train(tokenizer, trainers.BpeTrainer, bytes=True)
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if not token["content"].startswith("<0x")]
    return _whole(Tokenizer.from_str(json.dumps(fields)), unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's unigram model, as in T5 and Japanese GPT-2 models."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    _train(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")
    return _whole(tokenizer, unk_token="<unk>")


def _train(tokenizer: Tokenizer, trainer: Any, bytes: bool = False, **settings: Any) -> None:
    special = ["<unk>", "<bos>", "<eos>"] + [f"<0x{i:02X}>" for i in range(256) if bytes]
    given = {"vocab_size": 700, "special_tokens": special, "show_progress": False, **settings}
    tokenizer.train_from_iterator(_TEXTS, trainer(**given))


def _whole(tokenizer: Tokenizer, unk_token: str | None = None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk_token, bos_token="<bos>", eos_token="<eos>"
    )


KINDS = {
    "bytes alone": byte_tokenizer,
    "gpt-2": bytes_bpe,
    "gemma": sentencepiece_bpe,
    "llama 2": lambda: sentencepiece_bpe(prefix=True),
    "embedded": lambda: load_tokenizer("embedded"),
    "unigram": unigram,
}
