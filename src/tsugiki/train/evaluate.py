"""Figures that can be compared: loss, perplexity and bits per character of a model on texts.

The texts are cut into windows of equal characters, whatever the tokenizer, and each window is scored alone, after
the token that begins a document. So every token counts, two models see the same context, and

    loss          = NLL / tokens              (natural logarithm, of this tokenizer's tokens)
    perplexity    = exp(loss)
    bits_per_char = NLL / ln 2 / characters   (the figure to compare models with different tokenizers by)

where NLL is the summed negative log-likelihood of all tokens. A window with more tokens than the model's context
is scored in pieces that fit, each beginning anew.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.data.blocks import IGNORED, document_start, encode
from tsugiki.data.texts import Document
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 512
"""Characters (code points) a window."""

_LOGIT_BUDGET = 1 << 26  # elements of logits a batch may have: 256 MB in float32


@dataclass(frozen=True)
class Evaluation:
    """What was measured. `nll` is in nats, `characters` in code points."""

    nll: float
    tokens: int
    characters: int
    windows: int
    cut_windows: int
    """Windows that had to be scored in pieces."""
    unknown_tokens: int
    """Tokens that stand for characters the tokenizer does not have: bits per character then says too little."""
    round_trips: bool
    """Whether decoding the tokens gives the text back."""

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large to hold."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_char(self) -> float:
        """Bits needed for a character of the text."""
        return self.nll / math.log(2) / self.characters

    @property
    def caveat(self) -> str | None:
        """Why bits per character flatter this tokenizer on this text, if they do."""
        if self.unknown_tokens:
            return f"{self.unknown_tokens:,} unknown tokens: bits per character are lower than the text deserves"
        if not self.round_trips:
            return "decoding does not give the text back: bits per character may be lower than the text deserves"
        return None

    def to_json(self) -> dict[str, Any]:
        """The figures and the counts behind them."""
        figures = {"loss": self.loss, "perplexity": self.perplexity, "bits_per_char": self.bits_per_char}
        return {**figures, **asdict(self), "caveat": self.caveat}


def cut_windows(documents: Sequence[Document], limit: int | None = None) -> list[str]:
    """The documents in windows of `WINDOW` characters; the last of a document is shorter.

    Args:
        documents: in order.
        limit: at most about so many characters, in windows spread evenly over all of them.
    """
    windows = [
        document.text[start : start + WINDOW]
        for document in documents
        for start in range(0, len(document.text), WINDOW)
    ]
    windows = [window for window in windows if window.strip()]
    keep = len(windows) if limit is None else max(1, limit // WINDOW)
    if keep >= len(windows):
        return windows
    return [windows[i * len(windows) // keep] for i in range(keep)]


@torch.no_grad()
def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    windows: Sequence[str],
    advance: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Score windows of text (see the module's text). Leaves the model's mode as it was.

    Args:
        model: a causal language model.
        tokenizer: its own.
        windows: from `cut_windows`.
        advance: called with the number of rows done since the last call.

    Raises:
        TsugikiError: there is no text.
    """
    if not windows:
        raise TsugikiError("there is no text to evaluate on")
    start = document_start(tokenizer)
    encoded = encode(tokenizer, windows)
    room = context_length(model) - 1
    rows = [torch.tensor([start, *ids[first : first + room]]) for ids in encoded for first in range(0, len(ids), room)]
    training = model.training
    model.eval()
    try:
        nll = 0.0
        for batch in _batches(rows, model.config.get_text_config().vocab_size):
            nll += _nll(model, batch)
            advance(len(batch))
    finally:
        model.train(training)
    unknown = tokenizer.unk_token_id
    return Evaluation(
        nll=nll,
        tokens=sum(map(len, encoded)),
        characters=sum(map(len, windows)),
        windows=len(windows),
        cut_windows=sum(len(ids) > room for ids in encoded),
        unknown_tokens=0 if unknown is None else sum(ids.count(unknown) for ids in encoded),
        round_trips=all(
            tokenizer.decode(ids, clean_up_tokenization_spaces=False) == window
            for ids, window in zip(encoded, windows, strict=True)
        ),
    )


def context_length(model: "PreTrainedModel") -> int:
    """The most tokens that the model takes at once; 2,048 where its config does not say (BLOOM)."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else 2048


def _batches(rows: Sequence[Tensor], vocabulary: int) -> list[list[Tensor]]:
    """Rows of like length together, as many as the budget for their logits allows."""
    batches: list[list[Tensor]] = []
    for row in sorted(rows, key=len, reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0]) * vocabulary <= _LOGIT_BUDGET:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _nll(model: "PreTrainedModel", rows: Sequence[Tensor]) -> float:
    """Summed NLL of the rows' tokens after the first. Rows are padded on the right, which a causal model never sees."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    position = torch.arange(ids.shape[1], device=model.device)
    labels = ids.masked_fill(position >= lengths[:, None], IGNORED)
    logits = model(input_ids=ids, attention_mask=(position < lengths[:, None]).long(), use_cache=False).logits
    total = 0.0
    for row, label in zip(logits[:, :-1], labels[:, 1:], strict=True):
        total += float(F.cross_entropy(row.float(), label, ignore_index=IGNORED, reduction="sum").double())
    return total
