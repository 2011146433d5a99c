"""Generate text from prompts at once, in the calling thread; the text of a single prompt is streamed.

Prompts are continued in one batch if the model then computes the same as for each prompt alone. Each prompt has
random numbers of its own, so its text does not depend on the others, up to rounding.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.encoding import document_end
from tsugiki.errors import TsugikiError
from tsugiki.generation.batch import find_batch_mode
from tsugiki.generation.grammar import Grammars
from tsugiki.generation.prompt import Prompt, prompt_tokens
from tsugiki.generation.request import BatchMode, Event, Failed, Output, Request
from tsugiki.generation.sampling import Chooser, Sampling, TextStream, with_penalty_of
from tsugiki.generation.scheduler import Scheduler, generating
from tsugiki.lora.hold import active_adapter, active_names, is_merged
from tsugiki.model.context import context_length
from tsugiki.model.inference import seeded

_ROWS = 16
"""The most rows of a batch."""
_PREFIX_BYTES = 500_000_000  # of the keys and values of prompts that several rows have
_MODES: WeakKeyDictionary[Any, dict[object, tuple[ReferenceType[Any], BatchMode | None]]] = WeakKeyDictionary()
"""The answers of `_batch_mode` for each model, with the adapter that was active, or the model if none was."""


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None] = lambda text: None,
) -> str:
    """Return the model's continuation of a text, or its answer in a conversation, without the prompt.

    The model is used as it is, with its active adapter. Random numbers come from `sampling.seed`, and torch's global
    random state does not change, so that samples do not change the result of a training run. The text ends at the
    latest where the model's context ends. `emit` is called with every new piece of it, in which all characters are
    whole.
    """
    return generate_texts(model, tokenizer, [prompt], max_new_tokens, sampling, emit)[0]


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling,
    emit: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Return the result of `generate_text` for each prompt, computed in batches if the model allows it."""
    rows, context = [prompt_tokens(model, tokenizer, prompt) for prompt in prompts], context_length(model)
    for row in rows:
        if len(row.ids) >= context:
            raise TsugikiError(
                "the prompt has {count} tokens; the model's context of {context} leaves no room for more",
                count=len(row.ids),
                context=context,
            )
    ends = frozenset({document_end(tokenizer)}).union(*(row.ends for row in rows))
    return continue_rows(model, tokenizer, [row.ids for row in rows], max_new_tokens, sampling, ends, emit=emit)


def continue_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Collection[int],
    advance: Callable[[int], None] = lambda done: None,
    emit: Callable[[str], None] = lambda text: None,
    seeds: Sequence[int] = (),
    finish: Callable[[int, str], None] = lambda index, reason: None,
    at_once: int = _ROWS,
) -> list[str]:
    """Return the new text of each prompt, in batches of at most `at_once` rows if the model allows it.

    `rows` are the tokens of each prompt, fewer than the model's context, and `ends` the tokens that end a text. Every
    prompt has the same seed, or one of `seeds`; with these, prompts that are the same are computed once. `advance` is
    called with the number of prompts done since the last call, and `finish` with the index of each of them and the
    reason why its text ends (see `Output`).
    """
    if not rows:
        return []
    texts, errors = [""] * len(rows), list[Exception]()

    def receive(index: int, event: Event) -> None:
        try:
            if isinstance(event, Failed):
                raise event.error
            assert isinstance(event, Output)
            texts[index] += event.text
            if event.text:
                emit(event.text)
            if event.finish_reason:
                finish(index, event.finish_reason)
                advance(1)
        except Exception as error:
            errors.append(error)
            raise

    words, grammar = model.config.get_text_config().vocab_size, sampling.grammar
    matcher = None if grammar is None else Grammars(tokenizer, words).compile(grammar)
    sampling = with_penalty_of(model, sampling)
    with generating(model), seeded(sampling.seed or 0):
        mode, context = _batch_mode(model, len(rows)), context_length(model)
        requests = [
            Request(
                row,
                tokenizer,
                min(max_new_tokens, context - len(row)),
                partial(receive, index),
                content="" if seeds else None,
                batch_mode=mode or "alone",
                sampling=replace(sampling, seed=seeds[index]) if seeds else sampling,
                matcher=matcher and matcher.copy(),
                ends=ends,
            )
            for index, row in enumerate(rows)
        ]
        if mode is None:
            for request in requests:
                _by_transformers(model, request)
            return texts
        scheduler = Scheduler(model, at_once if mode == "mixed" else 1, at_once * context, _PREFIX_BYTES)
        scheduler.add(sorted(requests, key=lambda request: len(request.prompt)))
        while scheduler.busy and not errors:
            scheduler.step()
    if errors:
        raise errors[0]
    return texts


def _batch_mode(model: PreTrainedModel, rows: int) -> BatchMode | None:
    """Return how rows can be batched; None if the model has no ordinary cache, as state-space models.

    A test takes three forward passes or more, so the answer is kept until other modules or another adapter compute.
    """
    tested = active_adapter(model) if active_names(model) else model
    key = (rows > 1, is_merged(model), model.dtype, model.device, tuple(type(module) for module in model.modules()))
    known = _MODES.setdefault(model, {})
    if key not in known or known[key][0]() is not tested:
        try:
            known[key] = ref(tested), find_batch_mode(model, rows > 1)
        except TsugikiError:
            known[key] = ref(tested), None
    return known[key][1]


def _by_transformers(model: PreTrainedModel, request: Request) -> None:
    """Continue a prompt by transformers' `generate`, which knows the caches of all models."""
    chooser = Chooser(request.sampling, request.matcher, request.ends)
    stream, reason = TextStream(request.tokenizer, request.prompt), "length"

    def only_chosen(ids: Tensor, scores: Tensor) -> Tensor:
        """Choose the next token, and give all other tokens the score -inf."""
        nonlocal reason
        token = chooser.choose(scores[0].float(), ids[0].tolist(), ())
        reason = "stop" if token in request.ends else "length"
        request.deliver(Output("" if token in request.ends else stream.add(token), None))
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, token] = 0
        return chosen

    ids = torch.tensor([request.prompt], device=model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_tokens,
        eos_token_id=[*request.ends],
        pad_token_id=min(request.ends),
        use_cache=True,  # transformers' Trainer turns it off in the model's config
        do_sample=False,
        repetition_penalty=1.0,  # the chooser applies it
        logits_processor=LogitsProcessorList([only_chosen]),
    )
    request.deliver(Output(stream.finish(), None, reason))
