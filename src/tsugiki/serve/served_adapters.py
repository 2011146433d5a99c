"""The adapters that requests can name: those of the library, of runs, and folders that the server was started with.

An adapter is loaded and completely verified at its first use. Each load gets its own name in the model: after the files
of an adapter were replaced on the disk, new requests use the new files, and running requests finish with the old ones.

A mix is an adapter as well: the weighted sum of the updates of several adapters. Its rank is the sum of their ranks, so
the sum is exact, and its rows can be in a batch with those of other adapters.

A request holds an adapter from `acquire` to `release`. To make room for another adapter, the least recently used one
that no request holds is unloaded.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tsugiki.adapters.algebra.combine import refuse_more_than_updates
from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.files import content_digest, map_weights, read_adapter_config
from tsugiki.adapters.format import read_adapter, warn_of_unknown_base
from tsugiki.adapters.library import library_names
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.adapters.saved_tokenizer import with_chat_template, words_for
from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.errors import TsugikiError
from tsugiki.fast.layers import add_adapter
from tsugiki.fast.mixed_batch import mixed_batch
from tsugiki.generation.batch import find_batch_mode
from tsugiki.generation.engine import Engine
from tsugiki.generation.request import BatchMode, waited_too_long
from tsugiki.io.digests import FileState, file_state, sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.lora.graft import remove_adapter
from tsugiki.serve.errors import ApiError, invalid

if TYPE_CHECKING:
    from tsugiki.serve.runs_view import Runs

_Terms: TypeAlias = tuple[tuple[str, float | None], ...]
"""The adapters of a mix and their weights, sorted by name; an adapter alone has no weight."""
FileStates: TypeAlias = tuple[tuple[str, FileState], ...]
"""The names of an adapter's files and their states."""
_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, CHAT_TEMPLATE_FILE)
_BYTES = 4  # bytes of a number in memory
_NEAR = 3  # similar names that an error lists


@dataclass(eq=False)
class ServedModel:
    """The base, an adapter or a mix, as requests use it."""

    name: str
    """Name for users; that of a mix is a sum, such as `0.5 a + 0.5 b`."""
    key: str | None
    """The adapter's name in the model; None: the base."""
    tokenizer: PreTrainedTokenizerBase
    """With the chat template of the adapter, if it has one."""
    batch_mode: BatchMode
    digest: str = ""
    """SHA-256 of the weights and settings of the adapters, and of their factors in a mix, but not of names. Empty for
    the base. It can be the key of cached results."""
    files: tuple[FileStates, ...] = ()
    bytes: int = 0
    """Size of its weights in memory."""
    users: int = 0
    """Number of requests that hold it."""


class ServedAdapters:
    """The base and the adapters of a server. All methods are called in the thread of its event loop."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        base_name: str,
        folders: Mapping[str, Path],
        library: Path,
        max_loaded: int = 32,
        allow_base_mismatch: bool = False,
        max_bytes: int = 2_000_000_000,
    ) -> None:
        """Create it; the adapters in `folders`, by name, take precedence over those of the library.

        At most `max_loaded` adapters, of `max_bytes` together, are in memory.
        """
        self.engine = engine
        self.base = ServedModel(base_name, None, tokenizer, engine.batch_mode)
        self.folders, self.library = dict(folders), library
        self.runs: Runs | None = None  # whose adapters requests can name, also while they train
        self.max_loaded, self.max_bytes, self.allow_base_mismatch = max_loaded, max_bytes, allow_base_mismatch
        self._loaded: dict[_Terms, ServedModel] = {}  # least recently used first
        self._replaced: list[ServedModel] = []
        self._loads = itertools.count(1)
        self._loading = asyncio.Lock()
        self._released = asyncio.Event()

    def names(self) -> list[str]:
        """Return the names of all adapters that can be used, loaded or not, without those that are not valid text."""
        names = dict.fromkeys([*self.folders, *library_names(self.library)])
        return [name for name in names if name != self.base.name and name.encode(errors="ignore").decode() == name]

    def run_names(self) -> list[str]:
        """Return the names of the runs that have an adapter, without those that are the name of another model."""
        taken = {self.base.name, *self.names()}
        return [name for name in (self.runs.names() if self.runs else ()) if name not in taken]

    def loaded(self) -> list[str]:
        """Return the names of the adapters in memory."""
        return [terms[0][0] for terms in self._loaded if not _is_mix(terms)]

    async def acquire(self, name: str, mix: Mapping[str, float] = {}) -> ServedModel:
        """Return the base, an adapter or a mix, and hold it. It is loaded if it is not in memory.

        `name` is the base's name, an adapter's name, or both with a colon between them. `mix` is name of an adapter ->
        factor on its update. Adapters with the factor 0 are left out.
        """
        seconds = self.engine.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._acquire(self._terms(name, mix))
        except TimeoutError as error:
            raise waited_too_long(seconds) from error

    async def _acquire(self, terms: _Terms) -> ServedModel:
        if not terms:
            self.base.users += 1
            return self.base
        served = self._current(terms) or await self._load_in_turn(terms)
        served.users += 1
        return served

    def release(self, served: ServedModel) -> None:
        """Release a model that `acquire` has returned."""
        served.users -= 1
        self._released.set()
        self._retire()

    @asynccontextmanager
    async def held(self, name: str, mix: Mapping[str, float] = {}) -> AsyncIterator[ServedModel]:
        """Hold the model that `acquire` returns within the block."""
        served = await self.acquire(name, mix)
        try:
            yield served
        finally:
            self.release(served)

    def forget(self, name: str) -> None:
        """Unload an adapter and the mixes with it; running requests finish with them first."""
        leaving = [terms for terms in self._loaded if any(name == part for part, _weight in terms)]
        self._retire(*map(self._loaded.pop, leaving))

    def find(self, name: str, param: str = "model") -> str:
        """Return the name of the base or of the adapter that a request names in the field `param`."""
        called, names = name.removeprefix(f"{self.base.name}:"), [self.base.name, *self.names()]
        if called in names or self._run(called):  # a name is looked up in a list and is no path
            return called
        near = get_close_matches(called, names, n=_NEAR)
        shown = _("; did you mean {names}?", names=", ".join(map(repr, near))) if near else ""
        message = _("no model or adapter is called {name!r}{near}", name=called[:100], near=shown)
        raise ApiError(404, message, param, "model_not_found")

    def _terms(self, name: str, mix: Mapping[str, float]) -> _Terms:
        """Return the adapters that a request names, with their factors; empty for the base."""
        called = self.find(name)
        if not mix:
            return () if called == self.base.name else ((called, None),)
        if called != self.base.name:
            message = _(
                "model names the adapter {name!r}; with adapters, it must be the base, {base!r}",
                name=called,
                base=self.base.name,
            )
            raise invalid(message, "adapters")
        found = [(self.find(part, "adapters"), weight) for part, weight in mix.items()]
        if any(part == self.base.name for part, _weight in found):
            message = _("adapters names the base, {base!r}, which is always part of a mix", base=self.base.name)
            raise invalid(message, "adapters")
        return tuple(sorted((part, float(weight)) for part, weight in found if weight))

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter, whose name `find` has returned. That of a run changes while it trains."""
        if name in self.folders:
            return self.folders[name]
        own = self.library / name
        run = None if "/" not in name and os.path.lexists(own) else self._run(name)
        return run or own

    def tokenizer(self, served: ServedModel, template_of: str | None) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a model, with the chat template of another model if a request names one."""
        if template_of is None:
            return served.tokenizer
        name = self.find(template_of, "chat_template_of")
        return (
            self.base.tokenizer if name == self.base.name else with_chat_template(served.tokenizer, self.folder(name))
        )

    def _run(self, name: str) -> Path | None:
        return self.runs.folder(name) if self.runs else None

    def _current(self, terms: _Terms) -> ServedModel | None:
        """Return the loaded model of these adapters, and mark it as used; None if there is none or files changed."""
        served = self._loaded.pop(terms, None)
        if served is None:
            return None
        if served.files != self._file_states(terms):
            self._retire(served)
            return None
        self._loaded[terms] = served
        return served

    def _file_states(self, terms: _Terms) -> tuple[FileStates, ...]:
        return tuple(adapter_file_states(self.folder(name)) for name, _weight in terms)

    async def _load_in_turn(self, terms: _Terms) -> ServedModel:
        """Load adapters that are not in memory: one load at a time, and only when there is room."""
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._loading)
            if (served := self._current(terms)) is not None:  # another request has loaded it meanwhile
                return served
            size = await asyncio.to_thread(memory_of, [self.folder(part) for part, _weight in terms])
            await self._make_room(_sum_text(terms), size)
            loading = asyncio.create_task(self._load(terms, size, turn.pop_all()))
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # if no request waits any more
        return await asyncio.shield(loading)  # a cancelled load would leave its layers in the model

    async def _load(self, terms: _Terms, size: int, turn: AsyncExitStack) -> ServedModel:
        """Load adapters that take `size` bytes, and then leave the context `turn`."""
        async with turn:
            name = _sum_text(terms)
            key, engine, mismatch = f"{name}#{next(self._loads)}", self.engine, self.allow_base_mismatch
            folders = [self.folder(part) for part, _weight in terms]
            weights = [weight for _part, weight in terms if weight is not None]
            files = tuple(map(adapter_file_states, folders))  # not `folder` again: a run may have a newer one by now
            load = partial(load_served, engine.model, folders, weights, key, mismatch)
            message = _("{name!r} was replaced while it was loaded; try again", name=name)
            replaced = ApiError(503, message, retry_after=1)
            try:
                digest = await asyncio.to_thread(digest_of, folders, weights)
                tokenizer = self.base.tokenizer
                for _weight, folder in sorted(zip(map(abs, weights or [1.0]), folders, strict=True)):
                    tokenizer = with_chat_template(tokenizer, folder)  # the last one has the largest part
                batch_mode = await asyncio.wrap_future(engine.call(load))
            except TsugikiError as error:
                if tuple(map(adapter_file_states, folders)) != files:  # such as a checkpoint that is not kept any more
                    raise replaced from error
                reason = str(error)
                for term, folder in zip(terms, folders, strict=True):
                    reason = reason.replace(str(folder), term[0])  # clients must not see paths of the server
                if _is_mix(terms):
                    param, message = "adapters", _("the mix {name!r} cannot be used: {error}")
                else:
                    param, message = "model", _("the adapter {name!r} cannot be used: {error}")
                raise ApiError(400, message.format(name=name, error=reason), param, "adapter_unusable") from error
            served = ServedModel(name, key, tokenizer, batch_mode, digest, files, size)
            # If files were replaced while they were read, this digest may belong to other weights.
            if tuple(map(adapter_file_states, folders)) != files:
                self._retire(served)
                raise replaced
            self._loaded[terms] = served
            return served

    async def _make_room(self, name: str, size: int) -> None:
        """Unload adapters that no request holds, until an adapter of `size` bytes can be loaded.

        If all are held, the least recently used one is not given to new requests any more. It is unloaded when its
        present requests have ended, even if new requests keep naming all adapters.
        """
        if size > self.max_bytes:
            message = _(
                "the adapter {name!r} takes {size} of memory, which is more than the server has for adapters",
                name=name,
                size=format_size(size),
            )
            raise ApiError(400, message, "model", "adapter_unusable")
        while self._is_full(size):
            leaving = next((terms for terms, served in self._loaded.items() if served.users == 0), None)
            if leaving is None and not self._replaced:
                leaving = next(iter(self._loaded))
            if leaving is not None:
                self._retire(self._loaded.pop(leaving))
                continue
            self._released.clear()
            await self._released.wait()

    def _is_full(self, size: int) -> bool:
        in_memory = [*self._loaded.values(), *self._replaced]
        return len(in_memory) >= self.max_loaded or sum(served.bytes for served in in_memory) + size > self.max_bytes

    def _retire(self, *models: ServedModel) -> None:
        """Stop giving these models to new requests, and unload each such model that no request uses any more."""
        self._replaced += models
        for served in [served for served in self._replaced if served.users == 0]:
            self._replaced.remove(served)
            key = served.key
            assert key is not None
            with suppress(TsugikiError):  # the engine is stopping
                self.engine.call(partial(remove_adapter, self.engine.model, key))


def _is_mix(terms: _Terms) -> bool:
    return terms[0][1] is not None


def _sum_text(terms: _Terms) -> str:
    """Return an adapter's name, or a mix as a sum, such as `0.5 a + 0.5 b`."""
    return " + ".join(name if weight is None else f"{weight:g} {name}" for name, weight in terms)


# Loading -------------------------------------------------------------------------------------------------


def load_served(
    model: PreTrainedModel,
    folders: Sequence[Path],
    weights: Sequence[float],
    key: str,
    allow_base_mismatch: bool = False,
) -> BatchMode:
    """Load an adapter under the name `key`, and return how its rows can be batched with other rows.

    With weights, it is the sum of several adapters with these factors on their updates. Unlike `load_adapter`, this
    does not compare the logits with and without the adapter, to warn of one without any effect. The comparison would
    take most of the time, in which no other request gets a token.
    """
    for folder in folders:
        _refuse_new_words(model, folder)
        if weights:
            refuse_more_than_updates(read_lora_weights(folder), folder.name)
    if weights:
        adapter = load_weighted_sum(model, folders, weights, allow_base_mismatch=allow_base_mismatch)
    else:
        config = read_adapter_config(folders[0])
        adapter = read_adapter(model, folders[0], config, allow_base_mismatch=allow_base_mismatch)
    add_adapter(model, adapter, key)
    if not weights and not allow_base_mismatch:
        warn_of_unknown_base(model, folders[0])
    return _batch_mode(model, key)


def _refuse_new_words(model: PreTrainedModel, folder: Path) -> None:
    """Refuse an adapter that adds words to the vocabulary, because all rows of a batch share one."""
    words = words_for(model, folder)
    if words is not None and words != len(model.get_input_embeddings().weight):
        raise TsugikiError("it adds words to the vocabulary, which other adapters do not have; merge it instead")


def _batch_mode(model: PreTrainedModel, key: str) -> BatchMode:
    """Return how rows of the active adapter can be batched with other rows; if that fails, remove the adapter."""
    try:
        model.eval()
        try:
            with mixed_batch(model, [key]):
                pass
        except TsugikiError:  # its updates cannot be selected for each row
            return "same" if find_batch_mode(model) == "mixed" else "alone"
        return "mixed"
    except BaseException:
        remove_adapter(model, key)
        raise


def digest_of(folders: Sequence[Path], weights: Sequence[float]) -> str:
    """Return the digest of an adapter or a mix; the order of a mix's parts has no effect."""
    digests = [content_digest(folder) for folder in folders]
    if not weights:
        return digests[0]
    return sha256(f"{digest} {weight!r}\n".encode() for digest, weight in sorted(zip(digests, weights, strict=True)))


def memory_of(folders: Sequence[Path]) -> int:
    """Return how many bytes adapters take in memory; files that cannot be read do not count."""
    size = 0
    for folder in folders:
        with suppress(TsugikiError):
            size += sum(_BYTES * tensor.numel() for tensor in map_weights(folder).values())
    return size


def adapter_file_states(folder: Path) -> FileStates:
    """Return the names and states of an adapter's files, which differ if one of them is replaced."""
    states = []
    for name in _FILES:
        with suppress(OSError):
            states.append((name, file_state((folder / name).stat())))
    return tuple(states)
