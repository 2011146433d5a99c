"""Continuous batching: requests with different adapters and lengths in one batch.

They join and leave it at each token.

One thread owns the model. Other threads hand it requests (`submit`) and functions (`call`), and receive what it
generates by the `deliver` function of each request. A step of the thread

1. takes out the rows of requests that were cancelled,
2. admits waiting requests, as many as rows and cache allow, and computes a piece of the prompts of one group of them,
   the groups in turn,
3. computes one token for every row.

So a long prompt delays the others by one piece at most. Greedy tokens of a request are those that it gets alone,
because each row has its own adapter (`mixed_batch`), positions and mask; sampled ones, too, because each has its own
generator. In 16 bits this holds up to the rounding of products with other numbers of rows.

An adapter that `mixed_batch` cannot compute by rows has turns: its requests share a batch with each other only.

If a step raises an exception, its rows are computed again one by one, so that only the request that causes it fails.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tsugiki.errors import TsugikiError
from tsugiki.fast.generation import fast_generation
from tsugiki.generation.active_adapters import ActiveAdapters
from tsugiki.generation.batch import (
    Arriving,
    Batch,
    Row,
    begin_prompts,
    prompts_width,
    score_prompts,
    scored_token,
    without_cancelled,
)
from tsugiki.generation.batch_mode import find_batch_mode
from tsugiki.generation.limits import DEFAULT_LIMITS, Limits, QueueFull, stopped, waited_too_long
from tsugiki.generation.prefixes import Prefix
from tsugiki.generation.request import BatchMode, Event, Failed, Observer, Output, PromptScores, Request, ScoredToken
from tsugiki.generation.rows import bytes_per_token, compute, joined, selected, without_common_padding
from tsugiki.generation.sampling import Chooser
from tsugiki.generation.shared_prefixes import SharedPrefixes
from tsugiki.generation.text import TextStream
from tsugiki.language import _
from tsugiki.lora.hold import find_adapter
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.methods.soft_prompt import SoftPromptAdapter
from tsugiki.model.context import context_length
from tsugiki.model.inference import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL_MODEL = 500_000_000  # parameters; see `generation.texts`
_PADDING = 64  # tokens that prompts may differ in length to be computed together
_MOST_GROUPS = 4  # of prompts that are computed in turn, each of like length

Result = TypeVar("Result")


class Engine:
    """Generates text for requests, in a thread of its own that owns the model."""

    def __init__(self, model: "PreTrainedModel", limits: Limits = DEFAULT_LIMITS) -> None:
        """Create it; `start` starts the thread.

        Args:
            model: a causal language model, grafted or not. From `start` to `stop` only the engine may use it.
            limits: what is taken at most.
        """
        self.model, self.limits = model, limits
        self.context = context_length(model)
        self.batch_mode: BatchMode = "mixed"
        """Of rows of the base; found out when the thread starts, as is the next one."""
        self.token_bytes = 1
        """How many bytes the keys and values of one token take."""
        self.observer = Observer()
        self.prefixes = SharedPrefixes(limits.prefix_bytes)
        self._waiting: deque[Row] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tsugiki-engine", daemon=True)
        self._batch: Batch | None = None
        self._arriving: tuple[Arriving, ...] = ()  # groups of prompts, a piece of each in turn
        self._adapters = ActiveAdapters(model)

    # What other threads call.

    def start(self) -> None:
        """Start the thread.

        Raises:
            TsugikiError: rows of this model cannot be computed with a cache of keys and values.
        """
        self._thread.start()
        self.batch_mode = self.call(lambda: find_batch_mode(self.model)).result()
        if self.batch_mode != "mixed":  # keys and values depend on the length of the row
            self.prefixes = SharedPrefixes(0)
        self.token_bytes = self.call(lambda: bytes_per_token(self.model)).result()

    def stop(self) -> None:
        """End the thread; requests that are not finished fail with `EngineStopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._stopping

    @property
    def longest(self) -> int:
        """How many tokens a prompt and what follows it can have, without a soft prompt."""
        return min(self.context, self.cache_tokens)

    @property
    def cache_tokens(self) -> int:
        """How many tokens the cache holds."""
        return self.limits.cache_bytes // self.token_bytes

    @property
    def cached_tokens(self) -> int:
        """How many tokens are in the cache now, padding included."""
        return sum(group.cached.mask.numel() for group in self._groups())

    @property
    def running(self) -> int:
        """The number of rows that are computed now."""
        return sum(len(group.rows) for group in self._groups())

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    def room(self, adapter: str | None) -> int:
        """Return how many tokens a prompt and what follows it can have beside the soft prompt of an adapter, if any."""
        found = None if adapter is None else find_adapter(self.model, adapter)
        return self.longest - (len(found.prompt.embedding) if isinstance(found, SoftPromptAdapter) else 0)

    def adapters(self) -> tuple[list[str], list[str]]:
        """Return what the adapters are called whose rows are computed, and those for which requests wait."""
        computed = [row for group in self._groups() for row in group.rows]
        with self._changed:
            waiting = [*self._waiting]
        running, waited = (
            sorted({row.request.model_name for row in rows if row.request.adapter}) for rows in (computed, waiting)
        )
        return running, waited

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none.

        Raises:
            QueueFull: too many requests wait.
            EngineStopped: the thread ends or has ended.
            TsugikiError: a prompt is empty, or with its new tokens longer than the context or the cache.
        """
        for request in requests:
            self._check(request)
        rows = [Row(one, Chooser(one.sampling), TextStream(one.tokenizer, one.prompt, one.stops)) for one in requests]
        with self._changed:
            if not self.alive:
                raise stopped()
            if self._waiting and len(self._waiting) + len(rows) > self.limits.waiting:
                self.observer.refused("queue_full")
                raise QueueFull(_("{count} requests wait already; try again later").format(count=len(self._waiting)))
            self._waiting += rows
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Stop a request; its row is free before the next step, and nothing more is delivered."""
        with self._changed:
            request.cancelled = True
            self._changed.notify()

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Call a function in the thread, between two steps, with no adapter of a batch in the model."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._changed:
            if not self.alive:
                raise stopped()
            self._calls.append(run)
            self._changed.notify()
        return future

    def _check(self, request: Request) -> None:
        prompt, wanted, room = len(request.prompt), request.max_tokens, self.room(request.adapter)
        if prompt == 0:
            raise TsugikiError(_("the prompt is empty"))
        if prompt + wanted > room:
            raise TsugikiError(
                _(
                    "the prompt has {prompt} tokens, and {wanted} new ones were asked for; together they are {excess} "
                    "more than the context of {room}"
                ).format(prompt=prompt, wanted=wanted, excess=prompt + wanted - room, room=room)
            )

    # What the thread does.

    def _run(self) -> None:
        try:
            small = count_parameters(self.model) < _SMALL_MODEL and self.model.device.type == "cpu"
            with evaluating(self.model), fast_generation(self.model), with_one_thread() if small else nullcontext():
                while self._wait_for_work():
                    self._step()
        finally:
            self._end()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False: the thread is to end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._calls or self._waiting or self._batch or self._arriving
            )
            return not self._stopping

    def _step(self) -> None:
        if self._calls:
            self._adapters.deactivate()
            while self._calls:
                self._calls.popleft()()
        self._remove_cancelled()
        self._admit()
        if self._arriving:
            first, *others = self._arriving
            self._arriving = (*others, first)
            self._compute_prompts(first)
        if self._batch:
            self._compute_tokens(self._batch)

    def _remove_cancelled(self) -> None:
        with self._changed:
            late = time.monotonic() - self.limits.seconds
            leaving = [row for row in self._waiting if row.request.cancelled or row.since < late]
            for row in leaving:
                self._waiting.remove(row)
        for row in leaving:
            self._deliver(row, Failed(waited_too_long(self.limits.seconds)))
        for group in self._groups():
            for row in group.rows:
                if row.request.cancelled:
                    self.observer.ended(row.timing, "abort")
        self._arriving = tuple(left for group in self._arriving if (left := without_cancelled(group)))
        if self._batch:
            self._keep([i for i, row in enumerate(self._batch.rows) if not row.request.cancelled])

    def _keep(self, kept: list[int]) -> None:
        """Keep these rows of the batch."""
        assert self._batch
        for index in {*range(len(self._batch.rows))}.difference(kept):
            self.prefixes.keep(self._batch.rows[index], self._batch.cached, index)
        if not kept:
            self._batch = None
        elif len(kept) < len(self._batch.rows):
            rows = [self._batch.rows[index] for index in kept]
            cached = without_common_padding(selected(self._batch.cached, kept))
            self._batch = Batch(rows, cached)

    def _wait_again(self, rows: Sequence[Row]) -> None:
        """Put rows at the head of the queue; what they have generated becomes part of their prompts."""
        with self._changed:
            for row in reversed(rows):
                row.since = time.monotonic()
                row.scores = []
                self._waiting.appendleft(row)

    def _admit(self) -> None:
        """Begin the prompts of waiting requests, in their order, with those of like length together."""
        if not self._waiting or len(self._arriving) == _MOST_GROUPS:
            return
        present = [row for group in self._groups() for row in group.rows]
        most = self.limits.rows if self.batch_mode == "mixed" else 1
        arriving: list[Row] = []
        prefixes: list[Prefix] = []
        with self._changed:
            while self._waiting and len(present) + len(arriving) < most:
                row = self._waiting[0]
                rows = [*present, *arriving, row]
                size = len(rows) * (prompts_width(rows) + max(one.remaining for one in rows))
                if len(rows) > 1 and (size > self.cache_tokens or row.turn != rows[0].turn):
                    break
                prefix = self.prefixes.find(row)
                if arriving and not _alike(arriving[0], prefixes[0], row, prefix):
                    break
                first_rows = [group.rows[0] for group in self._arriving] + arriving[:1]
                if any(self.prefixes.worth_waiting(row, one, prefix, _PADDING) for one in first_rows):
                    break
                arriving.append(self._waiting.popleft())
                prefixes.append(prefix)
        if arriving:
            self._begin(arriving, prefixes)

    def _begin(self, rows: list[Row], prefixes: list[Prefix]) -> None:
        """Begin to compute the prompts of rows after their prefixes, as many tokens for all of them."""
        arriving = begin_prompts(rows, prefixes, self.model.device)
        for row in rows:
            self.observer.begun(row.timing, len(row.request.prompt))
            if self.prefixes.shares(row):
                self.observer.found(row.timing, row.length, max(0, row.length - arriving.left))
        self._arriving += (arriving,)

    def _groups(self) -> tuple[Batch | Arriving, ...]:
        """Return the batch, if there is one, and the groups whose prompts are computed."""
        batch = self._batch
        return (*(() if batch is None else (batch,)), *self._arriving)

    def _remove(self, arriving: Arriving) -> None:
        self._arriving = tuple(group for group in self._arriving if group is not arriving)

    def _compute_prompts(self, arriving: Arriving) -> None:
        """Compute a piece of the prompts; after the last one, choose a token and let the rows join the batch."""
        start, stop = arriving.done, arriving.done + arriving.next_width
        try:
            arriving.cached.mask = arriving.mask[:, :stop]
            self._adapters.activate(arriving.rows)
            logits = compute(self.model, arriving.cached, arriving.ids[:, start:stop], arriving.is_scored)
            if arriving.is_scored:
                score_prompts(arriving, logits, start)
            arriving.done = stop
            if arriving.left:
                return
            last = logits[:, -1].float().cpu()
            for index, row in enumerate(arriving.rows):
                self.prefixes.keep(row, arriving.cached, index)
        except Exception as error:
            self._remove(arriving)
            self._isolate(arriving.rows, error)
            return
        self._remove(arriving)
        present = [] if self._batch is None else self._batch.rows
        rows = [*present, *arriving.rows]
        try:
            cached = without_common_padding(arriving.cached)
            if self._batch is not None:
                cached = joined(self._batch.cached, cached)
        except Exception as error:  # such as for want of memory
            self._batch = None
            self._isolate(rows, error)
            return
        self._batch = Batch(rows, cached)
        staying = list(range(len(present)))
        for index, (row, of_row) in enumerate(zip(arriving.rows, last, strict=True), len(present)):
            if row.request.prompt_logprobs and not row.scored:
                row.scored = True
                self._deliver(row, PromptScores(tuple(row.scores)))
            if row.remaining == 0:
                self._deliver(row, Output("", None, "length"))
            elif self._next_token(row, of_row):
                staying.append(index)
        self._keep(staying)

    def _compute_tokens(self, batch: Batch) -> None:
        """Compute one token for each row."""
        ids = torch.tensor([[row.generated[-1]] for row in batch.rows], device=self.model.device)
        try:
            batch.cached.mask = torch.cat([batch.cached.mask, torch.ones_like(ids)], 1)
            self._adapters.activate(batch.rows)
            last = compute(self.model, batch.cached, ids)[:, -1].float().cpu()
        except Exception as error:
            self._batch = None
            self._isolate(batch.rows, error)
            return
        self._keep([i for i, row in enumerate(batch.rows) if self._next_token(row, last[i])])

    def _next_token(self, row: Row, logits: Tensor) -> bool:
        """Choose a row's next token and deliver it.

        Args:
            row: the row.
            logits: float32 on the processor, [vocabulary].

        Returns:
            Whether more tokens follow.
        """
        request = row.request
        try:
            forbidden = request.ends if len(row.generated) < request.min_tokens else ()
            token = row.chooser.choose(logits, request.prompt, row.generated, forbidden)
            row.generated.append(token)
            self.observer.token(row.timing)
            scored = ScoredToken(token, None)
            if request.logprobs is not None:
                scored = scored_token(torch.log_softmax(logits, -1), token, request.logprobs)
            is_end = token in request.ends
            may_stop = len(row.generated) > request.min_tokens
            text = "" if is_end else row.text.add(token, may_stop)
            if is_end or row.remaining == 0:
                text += row.text.finish(may_stop)
            reason = "stop" if is_end or row.text.stopped else "length" if row.remaining == 0 else None
        except Exception as error:
            self._deliver(row, Failed(error))
            return False
        return self._deliver(row, Output(text, scored, reason)) and reason is None

    def _isolate(self, rows: Sequence[Row], error: Exception) -> None:
        """After an exception in a batch, compute each of its rows alone; alone in a batch, the row has failed."""
        self._adapters.deactivate()
        if len(rows) == 1:
            self._deliver(rows[0], Failed(error))
            return
        for row in rows:
            row.separate = True
        self._wait_again(rows)

    def _deliver(self, row: Row, event: Event) -> bool:
        """Deliver an event, and return whether there is anybody to receive it."""
        if not row.request.cancelled:
            if isinstance(event, Failed):
                self.observer.ended(row.timing, "error")
            elif isinstance(event, Output) and event.finish_reason:
                self.observer.ended(row.timing, event.finish_reason)
            try:
                row.request.deliver(event)
            except Exception:  # nobody waits for it any more
                row.request.cancelled = True
        if row.request.cancelled:
            self.observer.ended(row.timing, "abort")
        return not row.request.cancelled

    def _end(self) -> None:
        """Tell all that wait that nothing more comes."""
        self._adapters.deactivate()
        with self._changed:
            self._stopping = True
            left = [*self._waiting]
            calls = [*self._calls]
            self._waiting.clear()
            self._calls.clear()
        for group in self._groups():
            left += group.rows
        self._batch, self._arriving = None, ()
        for row in left:
            self._deliver(row, Failed(stopped()))
        for call in calls:
            call()


def _alike(one: Row, known: Prefix, other: Row, known_of_other: Prefix) -> bool:
    """Return whether computing two prompts together, after their known prefixes, is not padding for the most part."""
    left, left_of_other = one.length - known.tokens, other.length - known_of_other.tokens
    return abs(one.length - other.length) <= _PADDING and abs(left - left_of_other) <= _PADDING
