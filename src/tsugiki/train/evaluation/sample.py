"""Generate text from a prompt, with a separate seed; the text can be streamed in whole characters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from tsugiki.base.context import context_length
from tsugiki.base.inference import evaluating, seeded
from tsugiki.data.encoding import document_end, document_start, encode
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token."""

    max_new_tokens: int = 80
    temperature: float = 0.7
    """Divides the logits. 0 always takes the most probable token."""
    top_p: float = 0.9
    """Sample from the most probable tokens that together have this probability."""
    seed: int = 0


def generate_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    sampling: Sampling,
    emit: Callable[[str], None] = lambda text: None,
) -> str:
    """Return the model's continuation of a prompt, without the prompt.

    Random numbers come from `sampling.seed`, and torch's global random state is restored afterwards, so that samples do
    not change the result of a training run.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer.
        prompt: the text to continue; it can be empty.
        sampling: how to choose tokens.
        emit: called with every new piece of text. A character that consists of several tokens is emitted whole.

    Raises:
        TsugikiError: the prompt fills the model's context.
    """
    ids = [document_start(tokenizer), *encode(tokenizer, [prompt])[0]]
    available = context_length(model) - len(ids)
    if available < 1:
        raise TsugikiError(
            f"the prompt has {len(ids)} tokens; the model's context of {context_length(model)} leaves no room for more"
        )
    streamer = _Streamer(tokenizer, emit)
    inputs = torch.tensor([ids], device=model.device)
    draw: dict[str, Any] = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if sampling.temperature > 0
        else {"do_sample": False}
    )
    with evaluating(model), seeded(sampling.seed):
        model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(sampling.max_new_tokens, available),
            eos_token_id=document_end(tokenizer),
            pad_token_id=document_end(tokenizer),
            use_cache=True,  # transformers' Trainer turns it off in the model's config
            streamer=streamer,
            **draw,
        )
    return streamer.text


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Collects new tokens and emits their text as soon as its last character is complete."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", emit: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.emit = emit
        self.ids: list[int] = []
        self.text = ""
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Receive the prompt in the first call and one new token in each later call."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text.rstrip(_INCOMPLETE)
        if len(whole) > len(self.text):
            self.emit(whole[len(self.text) :])
            self.text = whole

    def end(self) -> None:
        """Do nothing: an incomplete character at the end is dropped."""
