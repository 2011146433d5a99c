"""Completions and chat completions: from a parsed request to the engine's rows, and from their tokens to answers."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import Any, TypeAlias

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.generation.engine import Engine
from tsugiki.generation.request import (
    Event,
    Failed,
    Output,
    PromptScores,
    Request,
    ScoredToken,
    engine_stopped,
    queue_full,
)
from tsugiki.generation.sampling import TextStream, with_penalty_of
from tsugiki.language import _
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.prompt_tokens import (
    Prompt,
    chat_prompt,
    check_tokens,
    decoded,
    is_part,
    new_texts,
    text_prompts,
    token_text,
)
from tsugiki.serve.protocol import ChatRequest, CompletionRequest
from tsugiki.serve.served_adapters import ServedAdapters, ServedModel
from tsugiki.serve.structured_output import GrammarCompiler
from tsugiki.serve.tools import Answer, ForcedCalls, WrittenCalls

_DEFAULT_COMPLETION = 16  # new tokens, as OpenAI
_DEFAULT_CHAT = 1024
VERSION = version("tsugiki")
_FINGERPRINT = 12  # digits of the adapter's digest

_Events: TypeAlias = "asyncio.Queue[tuple[int, Event] | BaseException]"
"""Events of the engine with the index of their row, or the exception that ends the request."""


@dataclass
class Choice:
    """One of the `n` choices of an answer, as far as it has been generated."""

    prompt: Prompt
    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    """With those of the prompt if their log-probabilities are wanted."""
    offsets: Iterator[int] = field(default_factory=lambda: iter(()))
    """Where the tokens begin in the text."""
    generated: int = 0
    finish_reason: str | None = None
    answer: Answer | None = None
    """The calls of tools in the text, if there may be any."""


@dataclass(eq=False)
class Generation:
    """The rows of one HTTP request, and their output so far."""

    served: ServedModel
    parsed: CompletionRequest | ChatRequest
    prompts: list[Prompt]
    requests: list[Request]
    choices: list[Choice]
    events: _Events
    id: str
    created: int

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens so far, as in the field `usage`; a prompt counts once for its `n` choices."""
        given, new = sum(len(prompt.ids) for prompt in self.prompts), sum(choice.generated for choice in self.choices)
        cached = sum(request.cached_tokens for request in self.requests[:: self.parsed.n])
        return {
            "prompt_tokens": given,
            "completion_tokens": new,
            "total_tokens": given + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        self.events.put_nowait(error)


class Completions:
    """Answers requests, as many at once as the engine accepts, each within `seconds`."""

    def __init__(self, engine: Engine, adapters: ServedAdapters, seconds: float) -> None:
        self.engine, self.adapters, self.seconds = engine, adapters, seconds
        self._open = 0
        self._grammars = GrammarCompiler(adapters.base.tokenizer, engine.model.config.get_text_config().vocab_size)
        self._running: set[Generation] = set()

    def end(self) -> None:
        """End all that is being generated with the error that the server is stopping."""
        for generation in self._running:
            generation.fail(engine_stopped())

    @asynccontextmanager
    async def begin(self, parsed: CompletionRequest | ChatRequest) -> AsyncIterator[Generation]:
        """Queue the rows of a request; rows that are not finished at the end of the block are cancelled."""
        limits = self.engine.limits
        if self._open >= limits.rows + limits.waiting:
            raise queue_full(limits)
        self._open += 1
        since = time.monotonic()
        try:
            async with self.adapters.held(parsed.model, parsed.adapters or {}) as served:
                generation = await self._generation(served, parsed, since)
                self.engine.submit(generation.requests)
                message = _("the request took more than {seconds:g} s", seconds=self.seconds)
                late = ApiError(503, message, code="took_too_long")
                timer = asyncio.get_running_loop().call_later(self.seconds, generation.fail, late)
                self._running.add(generation)
                try:
                    yield generation
                finally:
                    self._running.remove(generation)
                    timer.cancel()
                    for request in generation.requests:
                        self.engine.cancel(request)
        finally:
            self._open -= 1

    async def _generation(
        self, served: ServedModel, parsed: CompletionRequest | ChatRequest, since: float
    ) -> Generation:
        model = self.engine.model
        # Before the prompt is rendered, since a schema that is too large can take seconds there as well.
        rows = parsed.n * (1 if isinstance(parsed, ChatRequest) else len(parsed.prompts))
        matchers = await self._grammars.matchers(parsed, rows)
        if isinstance(parsed, ChatRequest):
            tokenizer = self.adapters.tokenizer(served, parsed.chat_template_of)
            shown = [] if parsed.tool_choice == "none" else parsed.tools
            arguments = served.name, tokenizer, parsed.messages, shown, parsed.tool_choice == "auto"
            continued = parsed.continue_final_message
            prompts = [await asyncio.to_thread(chat_prompt, model, *arguments, continued)]
            logprobs = parsed.top_logprobs if parsed.logprobs else None
        else:
            prompts = await asyncio.to_thread(text_prompts, model, served.tokenizer, parsed.prompts)
            logprobs = parsed.logprobs
        check_tokens(model, map(int, parsed.logit_bias), "logit_bias")
        check_tokens(model, parsed.stop_token_ids, "stop_token_ids")
        loop = asyncio.get_running_loop()
        events: _Events = asyncio.Queue()
        echo = isinstance(parsed, CompletionRequest) and parsed.echo
        requests: list[Request] = []
        choices: list[Choice] = []
        for prompt in prompts:
            for number in range(parsed.n):
                requests.append(
                    Request(
                        prompt=prompt.ids,
                        tokenizer=served.tokenizer,
                        max_tokens=self._new_tokens(parsed, prompt, served),
                        deliver=partial(_hand_over, loop, events, len(requests)),
                        adapter=served.key,
                        content=served.digest,
                        batch_mode=served.batch_mode,
                        sampling=with_penalty_of(model, parsed.sampling(number)),
                        matcher=matchers[len(requests)],
                        stops=parsed.stops,
                        special=prompt.calls is not None,
                        ends={*(() if parsed.ignore_eos else prompt.ends), *parsed.stop_token_ids},
                        min_tokens=parsed.min_tokens,
                        logprobs=logprobs,
                        prompt_logprobs=echo and logprobs is not None,
                        since=since,
                    )
                )
                choices.append(Choice(prompt, answer=_answer(parsed, prompt, served.tokenizer)))
                choices[-1].offsets = _offsets(served.tokenizer, choices[-1], echo)
        kind = "chatcmpl" if isinstance(parsed, ChatRequest) else "cmpl"
        return Generation(
            served, parsed, prompts, requests, choices, events, f"{kind}-{uuid.uuid4().hex}", int(time.time())
        )

    def _new_tokens(self, parsed: CompletionRequest | ChatRequest, prompt: Prompt, served: ServedModel) -> int:
        if parsed.max_tokens == 0 and not (isinstance(parsed, CompletionRequest) and parsed.echo):
            raise invalid(_("max_tokens is 0, which is for echo only"), "max_tokens")
        room = self.engine.room(served.key) - len(prompt.ids)
        wanted = parsed.max_tokens
        if isinstance(parsed, ChatRequest):
            wanted = parsed.max_completion_tokens or wanted or _DEFAULT_CHAT
        elif wanted is None:
            wanted = _DEFAULT_COMPLETION
        return min(wanted, max(1, room))  # the engine refuses a prompt that leaves no room


async def outputs(generation: Generation) -> AsyncIterator[tuple[int, Output]]:
    """Yield each new token with the index of its choice, which is updated, until all are finished or one fails."""
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
        if choice.answer is not None:
            choice.answer.add(output.text, last=output.finish_reason is not None)
        if output.token is not None:
            choice.generated += 1
            choice.tokens.append(output.token)
        choice.finish_reason = output.finish_reason
        if choice.answer is not None and choice.answer.calls and output.finish_reason == "stop":
            choice.finish_reason = "tool_calls"
        unfinished -= output.finish_reason is not None
        yield index, output


async def whole_answer(generation: Generation) -> dict[str, Any]:
    """Return the answer to a request that is not streamed."""
    async for _output in outputs(generation):
        pass
    parsed, choices = generation.parsed, []
    for index, choice in enumerate(generation.choices):
        logprobs = _logprobs(generation, choice, choice.tokens)
        common = {"index": index, "finish_reason": choice.finish_reason, "logprobs": logprobs}
        if isinstance(parsed, ChatRequest):
            written = {"content": choice.text} if choice.answer is None else choice.answer.message()
            choices.append({**common, "message": {"role": "assistant", "refusal": None, **written}})
        else:
            choices.append({**common, "text": (choice.prompt.text if parsed.echo else "") + choice.text})
    kind = "chat.completion" if isinstance(parsed, ChatRequest) else "text_completion"
    return {**_head(generation, kind), "choices": choices, "usage": generation.usage}


async def chunks(generation: Generation) -> AsyncIterator[dict[str, Any]]:
    """Yield the chunks of a streamed answer; the first one comes with the first token."""
    parsed, options = generation.parsed, generation.parsed.stream_options
    head = _head(generation, "chat.completion.chunk" if isinstance(parsed, ChatRequest) else "text_completion")
    sent: dict[int, int] = {}  # index of a choice -> how many of its tokens were sent

    def chunk(choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = generation.usage if options.continuous_usage_stats or not choices else None
        return {**head, "choices": choices, **({"usage": usage} if options.include_usage else {})}

    async for index, output in outputs(generation):
        choice, text = generation.choices[index], output.text
        if index not in sent:
            if isinstance(parsed, ChatRequest):
                first = {"role": "assistant", "content": ""}
                yield chunk([{"index": index, "delta": first, "logprobs": None, "finish_reason": None}])
            elif parsed.echo:
                text = choice.prompt.text + text
        scored, sent[index] = choice.tokens[sent.get(index, 0) :], len(choice.tokens)
        delta = {"content": text} if text else {}
        if choice.answer is not None:
            delta = choice.answer.delta()
        if delta or choice.finish_reason or parsed.logprobs not in (None, False):
            written = {"delta": delta} if isinstance(parsed, ChatRequest) else {"text": text}
            logprobs = _logprobs(generation, choice, scored)
            yield chunk([{"index": index, "finish_reason": choice.finish_reason, "logprobs": logprobs, **written}])
    if options.include_usage:
        yield chunk([])


def _answer(
    parsed: CompletionRequest | ChatRequest, prompt: Prompt, tokenizer: PreTrainedTokenizerBase
) -> Answer | None:
    """Return what finds the calls of tools in an answer; None if there can be none."""
    if not isinstance(parsed, ChatRequest):
        return None
    if prompt.calls is None:
        return ForcedCalls(parsed.forced) if parsed.forced else None
    tools, before = [tool.function.tool for tool in parsed.tools], decoded(tokenizer, prompt.ids)
    return WrittenCalls(tokenizer.get_response_parser(prompt.calls, prefix=before, tools=tools))


def _offsets(tokenizer: PreTrainedTokenizerBase, choice: Choice, echo: bool) -> Iterator[int]:
    """Yield where each token of a choice begins in its text, in characters, as far as it has been generated.

    A part of a character begins where the character does. With `echo`, text and tokens begin with those of the prompt.
    """
    prompt, shown, place = choice.prompt, choice.prompt.shown if echo else [], 0
    for text in islice(new_texts(tokenizer, shown), len(shown)):
        yield place
        place += len(text)
    place, stream = len(prompt.text) if echo else 0, TextStream(tokenizer, prompt.ids)
    for scored in islice(choice.tokens, len(shown), None):
        yield place
        place += len(stream.add(scored.token))


def _logprobs(generation: Generation, choice: Choice, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
    """Return the field `logprobs` of an answer for the next tokens of a choice; None if it is not wanted."""
    parsed, tokenizer = generation.parsed, generation.served.tokenizer
    if isinstance(parsed, ChatRequest):
        return chat_logprobs(tokenizer, tokens) if parsed.logprobs and tokens else None
    if parsed.logprobs is None:
        return None
    return {**completion_logprobs(tokenizer, tokens), "text_offset": [*islice(choice.offsets, len(tokens))]}


def chat_logprobs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """Return log-probabilities in the format of a chat completion."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, token)
        given = None if is_part(tokenizer, token) else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": given}

    return {
        "content": [
            {**entry(scored.token, scored.logprob), "top_logprobs": [entry(*probable) for probable in scored.top]}
            for scored in tokens
        ]
    }


def completion_logprobs(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
    """Return log-probabilities in the format of a completion."""
    texts = [token_text(tokenizer, scored.token) for scored in tokens]
    top: list[dict[str, float] | None] = []
    for text, scored in zip(texts, tokens, strict=True):
        listed = {token_text(tokenizer, token): value for token, value in scored.top}
        top.append(None if scored.logprob is None else {**listed, text: scored.logprob})
    return {
        "tokens": texts,
        "token_logprobs": [scored.logprob for scored in tokens],
        "top_logprobs": top,
    }


def _hand_over(loop: asyncio.AbstractEventLoop, events: _Events, index: int, event: Event) -> None:
    """Hand an event from the engine's thread to the event loop."""
    loop.call_soon_threadsafe(events.put_nowait, (index, event))


def _head(generation: Generation, kind: str) -> dict[str, Any]:
    """Return the fields that every answer and chunk has; the fingerprint changes with the weights of the adapter."""
    digest = generation.served.digest.rpartition(":")[2][:_FINGERPRINT] or "base"
    return {
        "id": generation.id,
        "object": kind,
        "created": generation.created,
        "model": generation.parsed.model,
        "system_fingerprint": f"tsugiki-{VERSION}-{digest}",
    }
