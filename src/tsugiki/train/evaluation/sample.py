"""Text from a model: sampling under a seed of its own, whole or streamed, never half a character."""

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

_HALF = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `temperature` 0 takes the likeliest each time."""

    max_new_tokens: int = 80
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0


def generate_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    sampling: Sampling,
    emit: Callable[[str], None] = lambda text: None,
) -> str:
    """The model's continuation of `prompt`, without the prompt.

    Random numbers are drawn from `sampling.seed` and the global state is left as it was, so that looking at
    a run does not change it.

    Args:
        model: a causal language model.
        tokenizer: its own.
        prompt: may be empty.
        sampling: how to draw.
        emit: called with each piece of text as it comes; a character of several tokens comes whole.

    Raises:
        TsugikiError: the prompt leaves no room in the model's context.
    """
    ids = [document_start(tokenizer), *encode(tokenizer, [prompt])[0]]
    room = context_length(model) - len(ids)
    if room < 1:
        raise TsugikiError(
            f"the prompt has {len(ids)} tokens; the model's context of {context_length(model)} leaves no room to go on"
        )
    streamer = _Streamer(tokenizer, emit)
    inputs = torch.tensor([ids], device=model.device)
    draw: dict[str, Any] = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        if sampling.temperature > 0
        else {"do_sample": False}
    )
    with evaluating(model), seeded(sampling.seed, model.device):
        model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(sampling.max_new_tokens, room),
            eos_token_id=document_end(tokenizer),
            pad_token_id=document_end(tokenizer),
            use_cache=True,  # Trainer turns it off in the model's config
            streamer=streamer,
            **draw,
        )
    return streamer.text


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Collects new tokens and emits their text as soon as its last character is whole."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", emit: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.emit = emit
        self.ids: list[int] = []
        self.text = ""
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then one token a call."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = text.rstrip(_HALF)
        if len(whole) > len(self.text):
            self.emit(whole[len(self.text) :])
            self.text = whole

    def end(self) -> None:
        """Nothing is left to say: half a character at the very end is dropped."""
