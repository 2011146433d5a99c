"""Generate text from prompts; the text of a single prompt can be streamed in whole characters.

Several prompts are continued in one batch, padded on the left, if the model then computes the same as for each prompt
alone. Each prompt has a random generator of its own, so its text does not depend on the others, up to rounding.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from tsugiki.data.encoding import document_end
from tsugiki.fast.generation import fast_generation
from tsugiki.generation.prompts import Prompt, check_room, prompt_tokens
from tsugiki.generation.sampling import LOWEST_TEMPERATURE
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.model.context import context_length, rope_depends_on_length
from tsugiki.model.inference import evaluating, same_to_rounding, seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_BATCH = 16  # prompts
_SMALL_MODEL = 500_000_000  # parameters
_PROBED_TOKENS = 2  # the first one is computed from the prompts, the second one from the cache


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token."""

    max_new_tokens: int = 80
    temperature: float = 0.7
    """Divides the logits. 0 always takes the most probable token."""
    top_p: float = 0.9
    """Sample from the most probable tokens that together have this probability."""
    seed: int = 0
    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that occur in the prompt or the new text, and multiplies negative ones."""


def generate_text(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Prompt,
    sampling: Sampling,
    emit: Callable[[str], None] = lambda text: None,
) -> str:
    """Return the model's continuation of a text, or its answer in a conversation, without the prompt.

    Random numbers come from `sampling.seed`, and torch's global random state does not change, so that samples do not
    change the result of a training run.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer.
        prompt: the text to continue, which can be empty; or messages to answer, by the tokenizer's chat template.
        sampling: how to choose tokens.
        emit: called with every new piece of text. A character that consists of several tokens is emitted whole.

    Raises:
        TsugikiError: the prompt fills the model's context, or no chat template can render the messages.
    """
    tokens = prompt_tokens(model, tokenizer, prompt)
    check_room(model, tokens.ids)
    streamer = _Streamer(tokenizer, emit, tokens.ends)
    with _fast(model):
        _generate(model, tokenizer, [tokens.ids], sampling, streamer=streamer, ends=tokens.ends)
    return streamer.text


def generate_texts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[Prompt], sampling: Sampling
) -> list[str]:
    """Return the result of `generate_text` for each prompt, computed in batches if the model allows it.

    The prompts are all texts, or all conversations.

    Raises:
        TsugikiError: a prompt fills the model's context, or no chat template can render the messages.
    """
    tokens = [prompt_tokens(model, tokenizer, prompt) for prompt in prompts]
    for row in tokens:
        check_room(model, row.ids)
    ends = frozenset[int]().union(*(row.ends for row in tokens))
    return continue_rows(model, tokenizer, [row.ids for row in tokens], sampling, ends)


def continue_rows(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[list[int]],
    sampling: Sampling,
    ends: Collection[int] = (),
    advance: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Continue prompts, in batches if the model allows it.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer.
        rows: the tokens of each prompt, fewer than the model's context.
        sampling: how to choose tokens. Every prompt has the same seed.
        ends: tokens that end a text, besides the one that ends a document.
        advance: called with the number of prompts done since the last call.

    Returns:
        The new text of each prompt.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    texts: dict[int, str] = {}
    with _fast(model):
        together = len(rows) > 1 and _can_batch(model, tokenizer, [rows[order[0]], rows[order[-1]]])
        for batch in _batches(rows, order, context_length(model) - sampling.max_new_tokens if together else 0):
            prompts = [rows[index] for index in batch]
            tokens = _generate(model, tokenizer, prompts, sampling, ends=ends).sequences[:, max(map(len, prompts)) :]
            texts |= {
                index: _text(tokenizer, ids, ends) for index, ids in zip(batch, tokens.cpu().tolist(), strict=True)
            }
            advance(len(batch))
    return [texts[index] for index in range(len(rows))]


@contextmanager
def _fast(model: "PreTrainedModel") -> Iterator[None]:
    """Generate as fast as the processor allows: with fast products, and a small model in one thread.

    The products of a small model are short. On busy cores, threads would wait for each other ten times longer than they
    compute.
    """
    is_small = count_parameters(model) < _SMALL_MODEL
    one_thread = with_one_thread() if is_small and model.device.type == "cpu" else nullcontext()
    with fast_generation(model), one_thread:
        yield


def _batches(rows: Sequence[list[int]], order: Sequence[int], longest: int) -> list[list[int]]:
    """Divide indices of rows, sorted by length, into batches. Rows longer than `longest` are alone."""
    batches: list[list[int]] = []
    for index in order:
        if batches and len(batches[-1]) < _BATCH and len(rows[index]) <= longest:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _can_batch(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[list[int]]) -> bool:
    """Return whether the logits of the first new tokens of two prompts are the same in one batch as alone."""
    if max(map(len, rows)) + _PROBED_TOKENS > context_length(model) or rope_depends_on_length(model):
        return False
    probe = Sampling(_PROBED_TOKENS, temperature=0)
    try:
        together = _logits(_generate(model, tokenizer, rows, probe, stops=False))
        return all(
            same_to_rounding(of_row, _logits(_generate(model, tokenizer, [row], probe, stops=False))[0])
            for of_row, row in zip(together, rows, strict=True)
        )
    except Exception:  # the model does not support padding on the left; its own code may raise anything
        return False


def _logits(output: Any) -> Tensor:
    """Return the logits of the new tokens, [rows, tokens, vocabulary]."""
    return torch.stack(output.logits, 1)


def _generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[list[int]],
    sampling: Sampling,
    streamer: "_Streamer | None" = None,
    ends: Collection[int] = (),
    stops: bool = True,
) -> Any:
    """Continue prompts, padded on the left, with the output of transformers' `generate`.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer.
        rows: the tokens of each prompt.
        sampling: how to choose tokens.
        streamer: receives the tokens of a single prompt.
        ends: tokens that end a text, besides the one that ends a document.
        stops: whether a text ends at these tokens.
    """
    longest, end = max(map(len, rows)), document_end(tokenizer)
    padding = [longest - len(row) for row in rows]
    ids = torch.tensor([[end] * missing + row for missing, row in zip(padding, rows, strict=True)])
    attended = torch.tensor([[0] * missing + [1] * len(row) for missing, row in zip(padding, rows, strict=True)])
    chooser: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1:
        chooser.append(_RepetitionPenalty(sampling.repetition_penalty, padding))
    if sampling.temperature >= LOWEST_TEMPERATURE:
        chooser.append(_Draw(len(rows), sampling))
    with evaluating(model), seeded(sampling.seed):
        return model.generate(
            input_ids=ids.to(model.device),
            attention_mask=attended.to(model.device),
            max_new_tokens=min(sampling.max_new_tokens, context_length(model) - longest),
            min_new_tokens=None if stops else sampling.max_new_tokens,
            eos_token_id=[end, *ends],
            pad_token_id=end,
            use_cache=True,  # transformers' Trainer turns it off in the model's config
            streamer=streamer,
            do_sample=False,
            logits_processor=LogitsProcessorList(chooser),
            return_dict_in_generate=True,
            output_logits=not stops,
        )


class _RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """Lowers the scores of the tokens that a row contains. transformers' own processor would count the padding."""

    def __init__(self, penalty: float, padding: Sequence[int]) -> None:
        self.penalty, self.padding = penalty, padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [rows, vocabulary], for `input_ids` [rows, tokens]."""
        changed = scores.clone()
        for row, missing in enumerate(self.padding):
            seen = torch.unique(input_ids[row, missing:])
            values = scores[row, seen]
            changed[row, seen] = torch.where(values < 0, values * self.penalty, values / self.penalty)
        return changed


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws the next token of each row from the row's own generator, and gives all other tokens the score -inf.

    `generate` itself draws the tokens of all rows from one generator, so they would depend on the other rows. The
    generators are on the CPU, so that every device draws the same numbers.
    """

    def __init__(self, rows: int, sampling: Sampling) -> None:
        self.warpers = LogitsProcessorList(
            [TemperatureLogitsWarper(sampling.temperature), TopPLogitsWarper(sampling.top_p)]
        )
        self.generators = [torch.Generator().manual_seed(sampling.seed) for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores [rows, vocabulary]: 0 for the token that was drawn, -inf for every other one."""
        probabilities = torch.softmax(self.warpers(input_ids, scores), -1).cpu()
        drawn = [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(probabilities, self.generators, strict=True)
        ]
        return torch.full_like(scores, -torch.inf).scatter_(1, torch.stack(drawn).to(scores.device), 0.0)


def _text(tokenizer: "PreTrainedTokenizerBase", ids: list[int], ends: Collection[int] = ()) -> str:
    """Return the text of new tokens up to the first one that ends it, without an incomplete character at the end."""
    stop = {document_end(tokenizer), *ends}
    kept = list(takewhile(lambda token: token not in stop, ids))
    text: str = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.rstrip(_INCOMPLETE)


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Collects new tokens and emits their text as soon as its last character is complete."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", emit: Callable[[str], None], ends: Collection[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.emit = emit
        self.ends = ends
        self.ids: list[int] = []
        self.text = ""
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Receive the prompt in the first call and one new token in each later call."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        whole = _text(self.tokenizer, self.ids, self.ends)
        if len(whole) > len(self.text):
            self.emit(whole[len(self.text) :])
            self.text = whole

    def end(self) -> None:
        """Do nothing: an incomplete character at the end is dropped."""
