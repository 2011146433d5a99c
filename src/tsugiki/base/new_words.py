"""Add words to a vocabulary: names, old characters, and terms that the tokenizer would split into several tokens.

    words = read_words(file)                          # one word in each line
    new = add_words(tokenizer, words)                 # each word is one token from now on
    add_rows(model, new)                              # embedding and head get a row for each

A new row is initialised to the mean of the rows of the tokens into which the word was split before. An adapter that
trains these rows (`LoraConfig.trainable_token_indices`) is saved with the tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.checks import check_tokenizer_files
from tsugiki.base.resolve import loading_errors
from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.io.file_names import TOKENIZER_CONFIG_FILE

_MAX_WORDS = 20_000
_MAX_LENGTH = 100  # characters of a word


@dataclass(frozen=True)
class NewWords:
    """Words that were added to a tokenizer."""

    ids: Sequence[int]
    """The token ids of all words, including words that were tokens before."""
    pieces: Mapping[int, Sequence[int]]
    """Id of a new token -> the ids of the tokens into which the word was split before."""


def read_words(path: Path) -> list[str]:
    """Read the words in a UTF-8 file, one in each line; empty lines and repetitions are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise unreadable(path, error) from error
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words or len(words) > _MAX_WORDS:
        raise TsugikiError(
            "{path} has {count:,} words; give 1 to {most:,}, one in each line",
            path=path,
            count=len(words),
            most=_MAX_WORDS,
        )
    long = [word for word in words if len(word) > _MAX_LENGTH]
    if long:
        raise TsugikiError(
            "{path}: {line} is no word: it has {count} characters",
            path=path,
            line=error_text(long[0], 40),
            count=len(long[0]),
        )
    return words


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> NewWords:
    """Make each word a token of the tokenizer, which is changed in place."""
    known = tokenizer.get_vocab()
    written = {word: tokenizer.encode(word, add_special_tokens=False) for word in words}
    tokenizer.add_tokens([word for word in words if word not in known])
    ids = tokenizer.convert_tokens_to_ids(list(words))
    return NewWords(ids, {id: written[word] for word, id in zip(words, ids, strict=True) if word not in known})


@torch.no_grad()
def add_rows(model: PreTrainedModel, new: NewWords) -> None:
    """Add a row for each new word to embedding and head, in place: the mean of the rows of its pieces."""
    fit_vocabulary(model, max(new.ids) + 1)
    weights = {id(layer.weight): cast(Tensor, layer.weight) for layer in _ends(model)}
    for weight in weights.values():
        for token, pieces in new.pieces.items():
            if pieces:
                weight[token] = weight[list(pieces)].float().mean(0).to(weight.dtype)


def fit_vocabulary(model: PreTrainedModel, words: int) -> None:
    """Add rows to embedding and head until there are `words` rows; the caller replaces their values later."""
    for layer in _ends(model):
        if not isinstance(layer._parameters.get("weight"), torch.nn.Parameter):
            raise TsugikiError("new words need rows in an embedding that is quantised; load the base in bf16 or fp32")
    if words > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(words, mean_resizing=False)


def has_tokenizer(folder: Path) -> bool:
    """Return whether a tokenizer was saved with the adapter in a folder."""
    return (folder / TOKENIZER_CONFIG_FILE).is_file()


def load_saved_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was saved with an adapter; code in the folder is not run."""
    from transformers import AutoTokenizer

    check_tokenizer_files(folder)
    with loading_errors(str(folder)):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _ends(model: PreTrainedModel) -> list[torch.nn.Module]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [layer for layer in ends if layer is not None]
