"""Continuous batching: requests with different adapters and lengths join and leave one batch at each token.

A step

1. takes out the rows of requests that were cancelled,
2. admits waiting requests, as many as rows and cache allow, and computes a piece of the prompts of one group of them,
   the groups in turn,
3. computes one token for every row.

So a long prompt delays the others by one piece at most. Greedy tokens of a request are those that it gets alone,
because each row has its own adapter (`mixed_batch`), positions and mask; sampled ones, too, because each has its own
random numbers. In 16 bits this holds up to the rounding of products with other numbers of rows.

An adapter that `mixed_batch` cannot compute by rows has turns: its requests share a batch with each other only.

If a step raises an exception, its rows are computed again one by one, so that only the request that causes it fails.
"""

import ctypes
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.fast.modules import fast_generation
from tsugiki.generation.batch import (
    Arriving,
    Batch,
    begin_prompts,
    prompts_width,
    score_prompts,
    scored_token,
    without_cancelled,
)
from tsugiki.generation.decoding import use_decode_attention
from tsugiki.generation.key_value_cache import compute, joined, selected, without_common_padding
from tsugiki.generation.prefixes import BLOCK, Prefix, PrefixCache
from tsugiki.generation.request import (
    Event,
    Failed,
    Output,
    PromptScores,
    Request,
    Row,
    ScoredToken,
    waited_too_long,
)
from tsugiki.io.system import c_function
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.model.inference import evaluating
from tsugiki.model.undo import Undo, undo_all

_SMALL_MODEL = 500_000_000  # parameters
_PADDING = 64  # tokens that prompts may differ in length to be computed together
_MOST_GROUPS = 4
"""The most groups of prompts of like length that are computed in turn."""


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model generates, as fast as the processor allows: a small model in one thread.

    The products of a small model are short. On busy cores, threads would wait for each other ten times longer than they
    compute.
    """
    small = count_parameters(model) < _SMALL_MODEL and model.device.type == "cpu"
    if small:
        use_huge_pages(model)
    undo: list[Undo] = []
    with evaluating(model, repack=True), fast_generation(model), with_one_thread() if small else nullcontext():
        try:
            use_decode_attention(model, undo)
            yield
        finally:
            undo_all(undo)


class Scheduler:
    """Computes requests in steps. All methods are for the thread that owns the model, within `generating`."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        cache_tokens: int,
        prefix_bytes: int = 0,
        seconds: float = math.inf,
        activate: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        """Create it for batches of at most `rows` rows.

        The key-value cache may hold `cache_tokens` tokens, padding included, and a request may wait so many seconds.
        `activate` lets the model compute some rows, each with its adapter; by default the model computes as it is.
        """
        self.model, self.rows, self.cache_tokens, self.seconds = model, rows, cache_tokens, seconds
        self.activate = activate
        self.prefixes = PrefixCache(prefix_bytes)
        self.waiting: deque[Row] = deque()
        self._batch: Batch | None = None
        self._arriving: tuple[Arriving, ...] = ()  # groups of prompts, a piece of each in turn

    def add(self, requests: Iterable[Request]) -> None:
        """Let requests wait for their turn."""
        self.waiting += [Row(request) for request in requests]

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self.waiting or self._batch or self._arriving)

    @property
    def groups(self) -> tuple[Batch | Arriving, ...]:
        """The batch, if there is one, and the groups whose prompts are computed."""
        batch = self._batch
        return (*(() if batch is None else (batch,)), *self._arriving)

    def step(self) -> None:
        """Compute a piece of some prompts and a token for each row of the batch, and deliver what is new."""
        self._remove_cancelled()
        self._admit()
        if self._arriving:
            first, *others = self._arriving
            self._arriving = (*others, first)
            self._compute_prompts(first)
        if self._batch:
            self._compute_tokens(self._batch)

    def end(self, error: TsugikiError) -> None:
        """Let all requests fail that are not finished."""
        left = [*self.waiting, *(row for group in self.groups for row in group.rows)]
        self.waiting.clear()
        self._batch, self._arriving = None, ()
        for row in left:
            self._deliver(row, Failed(error))

    def _remove_cancelled(self) -> None:
        late = time.monotonic() - self.seconds
        leaving = [row for row in self.waiting if row.request.cancelled or row.since < late]
        for row in leaving:
            self.waiting.remove(row)
            self._deliver(row, Failed(waited_too_long(self.seconds)))
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

    def _admit(self) -> None:
        """Begin the prompts of waiting requests, in their order, with those of like length together."""
        if not self.waiting or len(self._arriving) == _MOST_GROUPS:
            return
        present = [row for group in self.groups for row in group.rows]
        arriving: list[Row] = []
        prefixes: list[Prefix] = []
        while self.waiting and len(present) + len(arriving) < self.rows:
            row = self.waiting[0]
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
            arriving.append(self.waiting.popleft())
            prefixes.append(prefix)
        if arriving:
            begun = begin_prompts(arriving, prefixes, self.model.device)
            for row in arriving:
                if self.prefixes.shares(row):
                    row.request.cached_tokens = max(0, row.length - begun.left)
            self._arriving += (begun,)

    def _compute_prompts(self, arriving: Arriving) -> None:
        """Compute a piece of the prompts; after the last one, choose a token and let the rows join the batch."""
        start, stop = arriving.done, arriving.done + arriving.next_width
        try:
            arriving.cached.mask = arriving.mask[:, :stop]
            self.activate(arriving.rows)
            logits = compute(self.model, arriving.cached, arriving.ids[:, start:stop], arriving.is_scored)
            if arriving.is_scored:
                score_prompts(arriving, logits, start)
            arriving.done = stop
            if arriving.left:
                return
            last = logits[:, -1].float()
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
        except Exception as error:  # there may not be enough memory
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

    def _remove(self, arriving: Arriving) -> None:
        self._arriving = tuple(group for group in self._arriving if group is not arriving)

    def _compute_tokens(self, batch: Batch) -> None:
        """Compute one token for each row."""
        ids = torch.tensor([[row.generated[-1]] for row in batch.rows], device=self.model.device)
        try:
            batch.cached.mask = torch.cat([batch.cached.mask, torch.ones_like(ids)], 1)
            self.activate(batch.rows)
            last = compute(self.model, batch.cached, ids)[:, -1].float()
        except Exception as error:
            self._batch = None
            self._isolate(batch.rows, error)
            return
        self._keep([i for i, row in enumerate(batch.rows) if self._next_token(row, last[i])])

    def _next_token(self, row: Row, logits: Tensor) -> bool:
        """Choose a row's next token by logits, float32 [vocabulary], deliver it, and return whether more follow."""
        request = row.request
        try:
            forbidden = request.ends if len(row.generated) < request.min_tokens else ()
            token = row.chooser.choose(logits, request.prompt, row.generated, forbidden)
            row.generated.append(token)
            scored = ScoredToken(token, None)
            if request.logprobs is not None:
                scored = scored_token(torch.log_softmax(logits, -1), token, request.logprobs)
            is_end = token in request.ends
            may_stop = len(row.generated) > request.min_tokens
            text = "" if is_end else row.text.add(token, may_stop)
            is_whole = is_end or row.chooser.finished
            if is_whole or row.remaining == 0:
                text += row.text.finish(may_stop)
            reason = "stop" if is_whole or row.text.stopped else "length" if row.remaining == 0 else None
        except Exception as error:
            self._deliver(row, Failed(error))
            return False
        return self._deliver(row, Output(text, scored, reason)) and reason is None

    def _isolate(self, rows: Sequence[Row], error: Exception) -> None:
        """After an exception in a batch, compute each of its rows alone; alone in a batch, the row has failed.

        The rows go to the head of the queue, and what they have generated becomes part of their prompts.
        """
        if len(rows) == 1:
            self._deliver(rows[0], Failed(error))
            return
        for row in reversed(rows):
            row.separate, row.since, row.scores = True, time.monotonic(), []
            self.waiting.appendleft(row)

    def _deliver(self, row: Row, event: Event) -> bool:
        """Deliver an event, and return whether there is anybody to receive it."""
        if not row.request.cancelled:
            try:
                row.request.deliver(event)
            except Exception:  # nobody waits for it any more
                row.request.cancelled = True
        return not row.request.cancelled


def _alike(one: Row, known: Prefix, other: Row, known_of_other: Prefix) -> bool:
    """Return whether computing two prompts together, after their known prefixes, is not padding for the most part."""
    left, left_of_other = one.length - len(known) * BLOCK, other.length - len(known_of_other) * BLOCK
    return abs(one.length - other.length) <= _PADDING and abs(left - left_of_other) <= _PADDING


_PAGE = 2 << 20  # bytes, of x86-64 and of ARM with small pages of 4 KiB
_COLLAPSE = 25  # MADV_COLLAPSE, man 2 madvise; since Linux 6.1
_GAP = 64 << 10  # bytes between two weights that may lie in one page


def use_huge_pages(model: nn.Module) -> None:
    """Let Linux copy the parameters and buffers of a model on the processor to huge pages, at the same addresses.

    Each token reads all weights. Processors fetch memory ahead only up to the end of a page, which normally has 4 KiB;
    in pages of 2 MiB, a token of SmolLM2 in bfloat16 takes 23 ms instead of 34 (docs/log.md).
    Their values, and the pointers to them, do not change. Making a huge page takes 1 to 6 ms, and almost no
    time if it is one already. Nothing happens on another system, with an older kernel, or where no huge page is free.
    """
    if (madvise := c_function("madvise")) is None:
        return
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end in _spans(model):
        first, last = -(-begin // _PAGE) * _PAGE, end // _PAGE * _PAGE
        if first < last:
            madvise(first, last - first, _COLLAPSE)


def _spans(model: nn.Module) -> list[tuple[int, int]]:
    """Return the beginnings and ends of the memory of all parameters and buffers; near ones are one span."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cpu]
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors):
        if spans and begin - spans[-1][1] < _GAP:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((begin, end))
    return spans
