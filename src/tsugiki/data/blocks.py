"""Tokens: documents become one stream, the stream is cut into blocks of equal length.

    <end> document <end> document <end> …      (or <begin> document <end>, where the tokenizer sets a begin)

No padding, and every token but the very first is learned exactly once an epoch: blocks share one token (the
last of one is the first of the next, and a block's first token is never predicted), and the last block reaches
back for context without learning that again.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from tsugiki.data.texts import Document
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learned, as in transformers."""

_AT_ONCE = 64  # documents a call of the tokenizer: enough to use every core, little enough to show progress


@dataclass(frozen=True, eq=False)
class Blocks(Dataset[dict[str, Tensor]]):
    """Rows of tokens to train on: `input_ids` and `labels`, both [rows, block size], int64 when read."""

    input_ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids[index].long(), "labels": self.labels[index].long()}

    @property
    def learned_tokens(self) -> int:
        """How many tokens are learned in one pass."""
        return int((self.labels[:, 1:] != IGNORED).sum())


def document_start(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that stands before a document: the begin token if the tokenizer sets one itself, else the end token.

    The same token is the context of a text's first token in training, in evaluation and in generation.

    Raises:
        TsugikiError: the tokenizer has no end token.
    """
    begin = tokenizer.bos_token_id
    if begin is not None and tokenizer("a").input_ids[:1] == [begin]:
        return int(begin)
    return document_end(tokenizer)


def document_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends a document.

    Raises:
        TsugikiError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise TsugikiError("the tokenizer has no end token (eos_token); set one in its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without any special token."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return ids


def token_stream(
    tokenizer: "PreTrainedTokenizerBase",
    documents: Sequence[Document],
    cache: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """All documents as one row of ids, int32, with begin and end tokens set.

    Args:
        tokenizer: of the base model.
        documents: in order.
        cache: a folder where the result is kept, by the content of texts and tokenizer.
        advance: called with the number of documents done since the last call.
    """
    path = cache / f"{_content_key(tokenizer, documents)}.safetensors" if cache else None
    if path and path.is_file():
        try:
            return load_file(path)["ids"]
        except (SafetensorError, KeyError):
            path.unlink()  # cut short by a full disk, say: made anew
    start, end = document_start(tokenizer), document_end(tokenizer)
    pieces: list[Tensor] = []
    for first in range(0, len(documents), _AT_ONCE):
        batch = documents[first : first + _AT_ONCE]
        for ids in encode(tokenizer, [document.text for document in batch]):
            opening = [start] if not pieces or start != end else []
            pieces.append(torch.tensor([*opening, *ids, end], dtype=torch.int32))
        advance(len(batch))
    stream = torch.cat(pieces)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({"ids": stream}, part)
        os.replace(part, path)
    return stream


def pack(stream: Tensor, block_size: int) -> Blocks:
    """Cut a row of ids into blocks of `block_size` (see the module's text).

    Raises:
        TsugikiError: the stream does not fill one block.
    """
    if len(stream) < block_size:
        raise TsugikiError(
            f"the training text has {len(stream)} tokens, less than one block of {block_size}; "
            "add text, or choose a smaller --block-size"
        )
    stride = block_size - 1
    starts = list(range(0, len(stream) - block_size + 1, stride))
    rows = [stream[start : start + block_size] for start in starts]
    labels = [row.clone() for row in rows]
    learned = starts[-1] + block_size
    if learned < len(stream):
        row = stream[-block_size:]
        rows.append(row)
        label = row.clone()
        label[: block_size - (len(stream) - learned)] = IGNORED
        labels.append(label)
    return Blocks(torch.stack(rows), torch.stack(labels))


def _content_key(tokenizer: "PreTrainedTokenizerBase", documents: Iterable[Document]) -> str:
    digest = hashlib.sha256(b"1")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest.update((backend.to_str() if backend else repr(sorted(tokenizer.get_vocab().items()))).encode())
    digest.update(repr((document_start(tokenizer), document_end(tokenizer))).encode())
    for document in documents:
        digest.update(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()
