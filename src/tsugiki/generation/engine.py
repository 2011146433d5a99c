"""The engine of the server: a scheduler in a thread of its own, which owns the model.

Other threads hand it requests (`submit`) and functions (`call`), and receive what it generates by the `deliver`
function of each request.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.fast.mixed_batch import mixed_batch
from tsugiki.fast.row_products import Place
from tsugiki.generation.batch import find_batch_mode
from tsugiki.generation.key_value_cache import bytes_per_token
from tsugiki.generation.prefixes import PrefixCache
from tsugiki.generation.request import BatchMode, Limits, Request, Row, engine_stopped, queue_full
from tsugiki.generation.scheduler import Scheduler, generating
from tsugiki.language import _
from tsugiki.lora.hold import base_alone, find_adapter, set_adapter
from tsugiki.lora.pair import LowRank
from tsugiki.methods.soft_prompt import SoftPromptAdapter
from tsugiki.model.context import context_length

Result = TypeVar("Result")


class Engine:
    """Generates text for requests, in a thread of its own that owns the model."""

    def __init__(self, model: PreTrainedModel, limits: Limits | None = None) -> None:
        """Create it; `start` starts the thread. From then to `stop` only the engine may use the model."""
        self.model, self.limits = model, limits or Limits()
        self.context = context_length(model)
        self.batch_mode: BatchMode = "mixed"
        """Of rows of the base; found out when the thread starts, as is the next one."""
        self.token_bytes = 1
        """How many bytes the keys and values of one token take."""
        self._adapters = ActiveAdapters(model)
        self.scheduler = Scheduler(
            model, self.limits.rows, 0, self.limits.prefix_bytes, self.limits.seconds, self._adapters.activate
        )
        self._submitted: deque[Request] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tsugiki-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self.batch_mode = self.call(lambda: find_batch_mode(self.model)).result()
        if self.batch_mode != "mixed":  # keys and values depend on the length of the row
            self.scheduler.rows, self.scheduler.prefixes = 1, PrefixCache(0)
        self.token_bytes = self.call(lambda: bytes_per_token(self.model)).result()
        self.scheduler.cache_tokens = self.cache_tokens

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
    def running(self) -> int:
        """The number of rows that are computed now."""
        return sum(len(group.rows) for group in self.scheduler.groups)

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return len(self._submitted) + len(self.scheduler.waiting)

    def room(self, adapter: str | None) -> int:
        """Return how many tokens a prompt and what follows it can have beside the soft prompt of an adapter, if any."""
        found = None if adapter is None else find_adapter(self.model, adapter)
        return self.longest - (len(found.prompt.embedding) if isinstance(found, SoftPromptAdapter) else 0)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, all or none."""
        for request in requests:
            self._check(request)
        with self._changed:
            if not self.alive:
                raise engine_stopped()
            free = max(0, self.scheduler.rows - self.running)  # rows that waiting requests get at the next step
            if self.waiting and self.waiting + len(requests) > self.limits.waiting + free:
                raise queue_full(self.limits)
            self._submitted += requests
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
                raise engine_stopped()
            self._calls.append(run)
            self._changed.notify()
        return future

    def _check(self, request: Request) -> None:
        prompt, room = len(request.prompt), self.room(request.adapter)
        if prompt == 0:
            raise TsugikiError("the prompt is empty")
        if prompt + request.max_tokens > room:
            message = _(
                "the prompt has {prompt} tokens, {excess} too many for the context of {room} and what is to follow"
            )
            excess = prompt + request.max_tokens - room
            raise TsugikiError(message.format(prompt=prompt, room=room, excess=excess))

    def _run(self) -> None:
        """Until the end: run the functions of `call`, which find no adapter active, then one step of the scheduler."""
        try:
            with generating(self.model):
                while self._wait_for_work():
                    if self._calls:
                        self._adapters.deactivate()
                    while self._calls:
                        self._calls.popleft()()
                    self.scheduler.step()
        finally:
            self._end()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False: the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._calls or self._submitted or self.scheduler.busy)
            self._take_submitted()
            return not self._stopping

    def _take_submitted(self) -> None:
        self.scheduler.add(self._submitted)
        self._submitted.clear()

    def _end(self) -> None:
        """Tell all that wait that nothing more comes."""
        self._adapters.deactivate()
        with self._changed:
            self._stopping = True
            self._take_submitted()
            calls = [*self._calls]
            self._calls.clear()
        self.scheduler.end(engine_stopped())
        for call in calls:
            call()


class ActiveAdapters:
    """Which adapters the model computes with, changed only when a batch needs others. For the engine's thread."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._present: tuple[object, ...] | None = None
        self._entered = ExitStack()
        self._known: dict[LowRank, Place] = {}

    def activate(self, rows: Sequence[Row]) -> None:
        """Let the model compute these rows, each with its adapter."""
        model, names = self._model, [row.request.adapter for row in rows]
        first = names[0]
        if first is not None and rows[0].request.batch_mode != "mixed":
            # All rows have this adapter: the scheduler batches them by `Row.turn`.
            if self._present != (first,):
                self._leave()
                set_adapter(model, first)
                self._present = (first,)
        elif not any(names):
            self._enter((None,), lambda: base_alone(model))
        else:
            self._enter(("rows", *names), lambda: mixed_batch(model, names, self._known))

    def deactivate(self) -> None:
        """Leave the model as it was before `activate`, so that adapters can be added, changed and removed."""
        self._leave()
        self._known.clear()

    def _leave(self) -> None:
        self._present = None
        self._entered.close()

    def _enter(self, key: tuple[object, ...], context: Callable[[], AbstractContextManager[None]]) -> None:
        """Enter a context, unless it is the present one."""
        if key == self._present:
            return
        self._leave()
        self._entered.enter_context(context())
        self._present = key
