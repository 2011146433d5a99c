"""A tokenizer trained on texts: byte-pair encoding that gives back every text exactly and knows no unknown token.

    <|endoftext|>                begins, ends and pads; id 0
    <0x00> … <0xFF>              bytes, for every character that is not in the alphabet
    the alphabet                 ASCII, the commonest characters of the texts, and those that are asked for
    pieces of several of these   merged inside a sentence; a line end is the first character of the line that follows

There is no normaliser, and nothing is added: decoding is joining. The end token written in a text becomes the token,
as in every tokenizer of transformers, and comes back as it was written.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

END = "<|endoftext|>"
SENTENCE = r"\n*[^\n。]*。?"
"""What merges stay inside, as a regular expression."""

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_ALWAYS = {chr(code) for code in range(32, 127)} | {"\n", "\t", "　"}


def train_vocabulary(
    texts: Callable[[], Iterable[str]],
    vocab_size: int,
    common_characters: int | None = None,
    alphabet: str = "",
    max_piece: int = 8,
    sample_characters: int = 20_000_000,
) -> "PreTrainedTokenizerBase":
    """A tokenizer of exactly `vocab_size` tokens.

    The texts are read twice and never held: once for the alphabet, once for the pieces. The same texts in the same
    order give the same tokenizer.

    Args:
        texts: gives the texts anew at each call.
        vocab_size: tokens in all.
        common_characters: how many of the commonest characters are single tokens; by default a third of the
            vocabulary, and no more than there are.
        alphabet: characters that are single tokens however rare they are.
        max_piece: characters a token at most.
        sample_characters: pieces are learnt from about so many characters, sentences spread evenly over all texts.

    Raises:
        TsugikiError: a vocabulary too small for its alphabet, or larger than the texts support.
    """
    from tokenizers import Tokenizer, models, trainers

    counts = Counter[str]()
    for text in texts():
        counts.update(text)
    common = vocab_size // 3 if common_characters is None else common_characters
    letters = _ALWAYS | set(alphabet) | {character for character, _ in counts.most_common(common)}
    least = 1 + len(_BYTES) + len(letters)
    if vocab_size <= least:
        raise TsugikiError(
            f"vocab_size is {vocab_size:,}, but the end token, 256 bytes and {len(letters):,} characters take "
            f"{least:,}; raise it, or lower common_characters"
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
        raise TsugikiError(
            f"vocab_size is {vocab_size:,}, but {counts.total():,} characters of text support only {found:,} tokens; "
            f"say {found} or less, or train on more text"
        )
    return _wrapped(_with_byte_fallback(draft))


def _stretches(texts: Iterable[str], letters: set[str], total: int, sample: int) -> Iterator[str]:
    """Sentences, cut where a character is not in the alphabet: about `sample` of `total` characters."""
    outside = re.compile("[^" + re.escape("".join(sorted(letters))) + "]+")
    share = min(1.0, sample / max(total, 1))
    owed = 0.0
    for text in texts:
        for sentence in re.findall(SENTENCE, text):
            owed += share
            if owed >= 1:
                owed -= 1
                yield from filter(None, outside.split(sentence))


def _with_byte_fallback(draft: "Tokenizer") -> "Tokenizer":
    """Built anew, because the bytes must not stay special: those are looked for in texts and left out by decoding."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    learnt: dict[str, Any] = json.loads(draft.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(learnt["vocab"], merges, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(SENTENCE), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _wrapped(tokenizer: "Tokenizer") -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    wrapped: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    return wrapped
