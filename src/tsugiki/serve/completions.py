"""Completions and chat completions: from a parsed request to the engine's rows, and from their tokens to answers."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from tsugiki.language import _
from tsugiki.serve.adapters import ServedAdapters, ServedModel
from tsugiki.serve.engine import Engine
from tsugiki.serve.errors import ApiError
from tsugiki.serve.limits import QueueFull
from tsugiki.serve.prompts import Prompt, chat_prompt, check_tokens, decoded, text_prompts, token_text
from tsugiki.serve.protocol import ChatRequest, CompletionRequest
from tsugiki.serve.request import Event, Failed, Output, PromptScores, Request, ScoredToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT_COMPLETION = 16  # new tokens, as OpenAI
_DEFAULT_CHAT = 1024

_Events: TypeAlias = "asyncio.Queue[tuple[int, Event] | BaseException]"
"""What comes from the engine, with the number of the row; or why nothing more comes."""


@dataclass
class Choice:
    """One answer, while it comes."""

    prompt: Prompt
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    generated: int = 0
    finish_reason: str | None = None


@dataclass(eq=False)
class Generation:
    """The rows of one HTTP request, and what comes from them."""

    served: ServedModel
    asked: CompletionRequest | ChatRequest
    prompts: list[Prompt]
    requests: list[Request]
    choices: list[Choice]
    events: _Events
    id: str
    created: int

    @property
    def usage(self) -> dict[str, int]:
        """The numbers of tokens so far."""
        prompt, new = sum(len(one.ids) for one in self.prompts), sum(choice.generated for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


class Completions:
    """Answers requests, as many at once as the engine takes."""

    def __init__(self, engine: Engine, adapters: ServedAdapters, seconds: float) -> None:
        """Create it.

        Args:
            engine: computes the rows.
            adapters: those that a request can name.
            seconds: how long a request may take.
        """
        self.engine, self.adapters, self.seconds = engine, adapters, seconds
        self._open = 0

    @asynccontextmanager
    async def begin(self, asked: CompletionRequest | ChatRequest) -> AsyncIterator[Generation]:
        """Queue the rows of a request; what is not finished at the end of the block is cancelled.

        Raises:
            ApiError: the request cannot be answered.
            TsugikiError: the prompt is too long, or too many requests wait.
        """
        limits = self.engine.limits
        if self._open >= limits.rows + limits.waiting:
            raise QueueFull(_("{count} requests wait already; try again later").format(count=self._open))
        self._open += 1
        since = time.monotonic()
        try:
            served = await self.adapters.acquire(asked.model, asked.adapters)
            try:
                generation = await self._generation(served, asked, since)
                self.engine.submit(generation.requests)
                timer = asyncio.get_running_loop().call_later(self.seconds, generation.events.put_nowait, self._late())
                try:
                    yield generation
                finally:
                    timer.cancel()
                    for request in generation.requests:
                        self.engine.cancel(request)
            finally:
                self.adapters.release(served)
        finally:
            self._open -= 1

    def _late(self) -> ApiError:
        message = _("the request took more than {seconds:g} s").format(seconds=self.seconds)
        return ApiError(503, message, code="took_too_long")

    async def _generation(
        self, served: ServedModel, asked: CompletionRequest | ChatRequest, since: float
    ) -> Generation:
        model = self.engine.model
        if isinstance(asked, ChatRequest):
            prompts = [await asyncio.to_thread(chat_prompt, model, served.name, served.tokenizer, asked.messages)]
            logprobs = asked.top_logprobs if asked.logprobs else None
        else:
            prompts = await asyncio.to_thread(text_prompts, model, served.tokenizer, asked.prompts)
            logprobs = asked.logprobs
        check_tokens(model, map(int, asked.logit_bias), "logit_bias")
        loop = asyncio.get_running_loop()
        events: _Events = asyncio.Queue()
        echo = isinstance(asked, CompletionRequest) and asked.echo
        requests: list[Request] = []
        choices: list[Choice] = []
        for prompt in prompts:
            for number in range(asked.n):
                index = len(requests)
                deliver = partial(_hand_over, loop, events, index)
                requests.append(
                    Request(
                        prompt=prompt.ids,
                        tokenizer=served.tokenizer,
                        max_tokens=self._new_tokens(asked, prompt, served),
                        deliver=deliver,
                        adapter=served.key,
                        content=served.digest,
                        model_name=self.adapters.base.name if asked.adapters else served.name,
                        company=served.company,
                        sampling=asked.sampling(number),
                        stops=asked.stops,
                        ends=frozenset() if asked.ignore_eos else prompt.ends,
                        min_tokens=asked.min_tokens,
                        logprobs=logprobs,
                        prompt_logprobs=echo and logprobs is not None,
                        since=since,
                    )
                )
                choices.append(Choice(prompt))
        kind = "chatcmpl" if isinstance(asked, ChatRequest) else "cmpl"
        return Generation(
            served, asked, prompts, requests, choices, events, f"{kind}-{uuid.uuid4().hex}", int(time.time())
        )

    def _new_tokens(self, asked: CompletionRequest | ChatRequest, prompt: Prompt, served: ServedModel) -> int:
        if isinstance(asked, CompletionRequest):
            if asked.max_tokens == 0 and not asked.echo:
                raise ApiError(400, _("max_tokens is 0, which is for echo only"), "max_tokens", "invalid_value")
            return _DEFAULT_COMPLETION if asked.max_tokens is None else asked.max_tokens
        wanted = asked.max_completion_tokens or asked.max_tokens
        room = self.engine.room(served.key) - len(prompt.ids)
        return max(1, min(_DEFAULT_CHAT, room)) if wanted is None else wanted


async def outputs(generation: Generation) -> AsyncIterator[tuple[int, Output]]:
    """Yield new tokens with the numbers of their choices, which are updated, until all are finished.

    Raises:
        BaseException: what the engine has raised for a row.
    """
    unfinished = len(generation.choices)
    while unfinished:
        event = await generation.events.get()
        if isinstance(event, BaseException):
            raise event
        index, output = event
        choice = generation.choices[index]
        if isinstance(output, Failed):
            raise output.error
        if isinstance(output, PromptScores):
            choice.tokens += output.tokens[len(choice.prompt.ids) - len(choice.prompt.shown) :]
            continue
        choice.text += output.text
        if output.token is not None:
            choice.generated += 1
            choice.tokens.append(output.token)
        choice.finish_reason = output.finish_reason
        unfinished -= output.finish_reason is not None
        yield index, output


async def whole_answer(generation: Generation) -> dict[str, Any]:
    """Return the answer to a request that is not streamed."""
    async for _output in outputs(generation):
        pass
    asked, tokenizer = generation.asked, generation.served.tokenizer
    choices: list[dict[str, Any]] = []
    for index, choice in enumerate(generation.choices):
        common = {"index": index, "finish_reason": choice.finish_reason}
        if isinstance(asked, ChatRequest):
            logprobs = chat_logprobs(tokenizer, choice.tokens) if asked.logprobs else None
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            choices.append({**common, "message": message, "logprobs": logprobs})
        else:
            text = (choice.prompt.text if asked.echo else "") + choice.text
            listed = None if asked.logprobs is None else completion_logprobs(tokenizer, choice.tokens)
            choices.append({**common, "text": text, "logprobs": listed})
    kind = "chat.completion" if isinstance(asked, ChatRequest) else "text_completion"
    return {**_head(generation, kind), "choices": choices, "usage": generation.usage}


async def chunks(generation: Generation) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer; the first one comes with the first token."""
    asked, options = generation.asked, generation.asked.stream_options
    head = _head(generation, "chat.completion.chunk" if isinstance(asked, ChatRequest) else "text_completion")
    places = [_Sent() for _ in generation.choices]

    def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = generation.usage if options.continuous_usage_stats or not choices else None
        return {**head, "choices": choices, **({"usage": usage} if options.include_usage else {})}

    async for index, output in outputs(generation):
        choice, sent, text = generation.choices[index], places[index], output.text
        if not sent.begun:
            sent.begun = True
            if isinstance(asked, ChatRequest):
                first = {"role": "assistant", "content": ""}
                yield chunk([{"index": index, "delta": first, "logprobs": None, "finish_reason": None}])
            elif asked.echo:
                text = choice.prompt.text + text
        scored, sent.tokens = choice.tokens[sent.tokens :], len(choice.tokens)
        if text or output.finish_reason or asked.logprobs not in (None, False):
            yield chunk([_part(generation, sent, index, text, scored, output.finish_reason)])
    if options.include_usage:
        yield chunk([])


@dataclass
class _Sent:
    """What was sent of a choice."""

    begun: bool = False
    tokens: int = 0
    characters: int = 0
    """Of the tokens with log-probabilities."""


def _part(
    generation: Generation, sent: _Sent, index: int, text: str, scored: list[ScoredToken], reason: str | None
) -> dict[str, Any]:
    """Return a choice of a chunk."""
    asked, tokenizer = generation.asked, generation.served.tokenizer
    common = {"index": index, "finish_reason": reason}
    if isinstance(asked, ChatRequest):
        logprobs = chat_logprobs(tokenizer, scored) if asked.logprobs and scored else None
        return {**common, "delta": {"content": text} if text else {}, "logprobs": logprobs}
    if asked.logprobs is None:
        return {**common, "text": text, "logprobs": None}
    listed = completion_logprobs(tokenizer, scored, sent.characters)
    sent.characters += sum(map(len, listed["tokens"]))
    return {**common, "text": text, "logprobs": listed}


def chat_logprobs(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """Return log-probabilities as a chat completion has them."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, token)
        is_text = text == decoded(tokenizer, [token])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if is_text else None}

    return {
        "content": [
            {**entry(one.token, one.logprob), "top_logprobs": [entry(token, value) for token, value in one.top]}
            for one in tokens
        ]
    }


def completion_logprobs(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[ScoredToken], offset: int = 0
) -> dict[str, Any]:
    """Return log-probabilities as a completion has them; `offset` is where the text of the first token begins."""
    texts = [token_text(tokenizer, one.token) for one in tokens]
    offsets = [offset + sum(map(len, texts[:place])) for place in range(len(texts))]
    top: list[dict[str, float] | None] = []
    for text, one in zip(texts, tokens, strict=True):
        listed = {token_text(tokenizer, token): value for token, value in one.top}
        top.append(None if one.logprob is None else {**listed, text: one.logprob})
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _hand_over(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[tuple[int, Event] | BaseException]",
    index: int,
    event: Event,
) -> None:
    """Hand an event from the engine's thread to the event loop."""
    loop.call_soon_threadsafe(events.put_nowait, (index, event))


def _head(generation: Generation, kind: str) -> dict[str, Any]:
    return {"id": generation.id, "object": kind, "created": generation.created, "model": generation.asked.model}
