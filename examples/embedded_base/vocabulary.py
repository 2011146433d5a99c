"""Train a tokenizer: byte-pair encoding with byte fallback, which reproduces every text exactly.

    <|endoftext|>               begin, end and padding token; id 0
    <0x00> … <0xFF>             bytes, for characters outside the alphabet
    the alphabet                ASCII, the most frequent characters of the texts, and given characters
    longer tokens               merges within a sentence; a line feed belongs to the following line

The tokenizer does not normalise the text and adds nothing to it, so decoding is concatenation. As in all tokenizers of
transformers, an end token that is written in a text is encoded as that token.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tsugiki.annotations import PreTrainedTokenizerBase

END = "<|endoftext|>"
SENTENCE = r"\n*[^\n。]*。?"
"""A regular expression for one sentence. No token spans several sentences."""

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_REQUIRED = {chr(code) for code in range(32, 127)} | {"\n", "\t", "　"}


def train_vocabulary(
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    common_characters: int | None = None,
    alphabet: str = "",
    max_piece: int = 8,
    sample_characters: int = 20_000_000,
) -> PreTrainedTokenizerBase:
    """Train a tokenizer with exactly `vocab_size` tokens.

    The texts are read twice, once to count characters and once to learn merges, and are not kept in memory. The same
    texts in the same order give the same tokenizer.

    Args:
        texts: returns the texts; called once for each reading.
        vocab_size: the total number of tokens.
        common_characters: how many of the most frequent characters are single tokens; by default a third of the
            vocabulary, at most all characters.
        alphabet: characters that are single tokens even if they are rare.
        max_piece: the largest number of characters in a token.
        sample_characters: the approximate number of characters from which merges are learned, in sentences that are
            spread evenly over all texts.
    """
    counts = Counter[str]()
    for text in texts():
        counts.update(text)
    common = vocab_size // 3 if common_characters is None else common_characters
    letters = _REQUIRED | set(alphabet) | {character for character, _ in counts.most_common(common)}
    minimum = 1 + len(_BYTES) + len(letters)
    if vocab_size <= minimum:
        raise ValueError(
            f"vocab_size is {vocab_size:,}, but the end token, 256 bytes and {len(letters):,} characters take "
            f"{minimum:,}; raise it, or lower common_characters"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END, *_BYTES],
        initial_alphabet=sorted(letters),
        limit_alphabet=len(letters),
        max_token_length=max_piece,
        show_progress=False,
    )
    draft = Tokenizer(models.BPE())
    draft.train_from_iterator(_stretches(texts(), letters, counts.total(), sample_characters), trainer)
    found = draft.get_vocab_size()
    if found < vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size:,}, but {counts.total():,} characters of text support only {found:,} tokens"
        )
    return _as_pretrained(_with_byte_fallback(draft))


def _stretches(texts: Iterable[str], letters: set[str], total: int, sample: int) -> Iterator[str]:
    """Yield about `sample` of `total` characters: sentences, split at characters outside the alphabet."""
    outside = re.compile("[^" + re.escape("".join(sorted(letters))) + "]+")
    share = min(1.0, sample / max(total, 1))
    due = 0.0
    for text in texts:
        for sentence in re.findall(SENTENCE, text):
            due += share
            if due >= 1:
                due -= 1
                yield from filter(None, outside.split(sentence))


def _with_byte_fallback(draft: Tokenizer) -> Tokenizer:
    """Rebuild the tokenizer with ordinary byte tokens, because decoding drops special tokens."""
    trained: dict[str, Any] = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(trained["vocab"], merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SENTENCE), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    wrapped: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    return wrapped
