"""Whether the output head gets LoRA factors as well, by what the base predicts on the text (`base_predictions`).

    share of unlikely tokens    below 0.5 %    its B has a tenth of the learning rate, if the vocabulary has at most
                                               16,384 tokens; otherwise the head is left out
                                below 2 %      its B has a tenth of the learning rate
                                from 2 % on    it trains like the other layers, if the vocabulary has at most 32,768
                                               tokens; otherwise as below 2 %

The default layers are the linear layers inside the blocks. They change what goes into the head, but not the head's
rows, so they can hardly raise the probability of a token that the base has never written, such as an old form of a
Chinese character. A base gives such a token a probability of less than 1 in 400,000 almost everywhere, and any other
token seldom: the embedded model to up to 1.6 % of the tokens of works in old kana, and to 3 % of those of the
quickstart's texts, which are in katakana. With few unlikely tokens, or with the large head of Gemma 3 270M, the head at
the full rate forgets more than it learns; at a tenth of it, and with the strength that `training.choose.decisions`
chooses, nearly all texts that were tried with the embedded model gain, also those with few such tokens
(docs/training-evidence.md).
"""

from torch import nn

from tsugiki.language import _
from tsugiki.model.context import text_config

_SHARE, _LARGE_SHARE = 0.005, 0.02
_SMALL_VOCABULARY, _LARGEST_VOCABULARY = 16_384, 32_768
_SLOW = 0.1


def head_factor(share: float, vocabulary: int) -> float | None:
    """Return the learning rate of the head's B relative to that of the run; None: the head is left out.

    `share` is that of unlikely tokens.
    """
    if share < _SHARE and vocabulary > _SMALL_VOCABULARY:
        return None
    return 1.0 if share >= _LARGE_SHARE and vocabulary <= _LARGEST_VOCABULARY else _SLOW


def head_notes(share: float, model: nn.Module) -> list[str]:
    """Return the sentences that say that the head trains as well, how to undo it, and what llama.cpp then needs."""
    message = _("the output head gets LoRA factors as well ({flag:target_modules all-linear} leaves it out)")
    if share >= _SHARE:
        message = _(
            "the base gives {share:.1%} of the tokens almost no probability, as if it had never written them, so the "
            "output head gets LoRA factors as well ({flag:target_modules all-linear} leaves it out)"
        )
    notes = [message.format(share=share)]
    if text_config(model).tie_word_embeddings:
        notes.append(
            _(
                "the head shares its weight with the token embedding, so llama.cpp can load the adapter merged into "
                "its base only ({flag:merged} of tsugiki export)"
            )
        )
    return notes
