"""The adapters that requests can name: those of the library, and folders that the server was started with.

An adapter is loaded at its first use, and verified whole. Every load gets another name in the model. So an adapter that
was replaced on the disk is a new one from the next request on, and requests that began with the old one end with it.

A mix is an adapter, too: the weighted sum of the updates of several ones, with their ranks added up, so that it is
exact and its rows can be in a batch with those of other adapters.

A request holds an adapter from `acquire` to `release`. Of those that no request holds, the least recently used one
makes room for another.
"""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from tsugiki.adapters.algebra.combine import refuse_more_than_updates
from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.chat_template import with_chat_template
from tsugiki.adapters.files import content_digest, map_weights, read_adapter_config
from tsugiki.adapters.format import read_adapter, warn_of_another_name
from tsugiki.adapters.library import library_names
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.adapters.vocabulary import words_for
from tsugiki.errors import TsugikiError
from tsugiki.io.digests import sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.io.formatting import format_size
from tsugiki.language import _
from tsugiki.lora.graft import add_adapter, remove_adapter
from tsugiki.lora.mixed_batch import mixed_batch
from tsugiki.serve.company import find_company
from tsugiki.serve.engine import Engine
from tsugiki.serve.errors import ApiError
from tsugiki.serve.limits import waited_too_long
from tsugiki.serve.request import Company

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FileStates: TypeAlias = tuple[tuple[str, int, int, int], ...]
_Terms: TypeAlias = tuple[tuple[str, float | None], ...]
"""The adapters of a mix and their weights, sorted by name; an adapter alone has no weight."""
_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, CHAT_TEMPLATE_FILE)
_NEAR = 3  # names in an error


@dataclass(eq=False)
class ServedModel:
    """The base, an adapter or a mix, as requests use it."""

    name: str
    """For people; a mix is written as a sum."""
    key: str | None
    """The adapter's name in the model; None: the base."""
    tokenizer: "PreTrainedTokenizerBase"
    """With the chat template of the adapter, if it has one."""
    company: Company
    digest: str = ""
    """A SHA-256 of what it computes: of the weights and settings of adapters and their weights in a mix, never of
    names. Empty for the base. Whatever is cached of an adapter can be kept by it."""
    files: tuple[FileStates, ...] = ()
    bytes: int = 0
    """Of its weights in memory."""
    users: int = 0
    """Requests that hold it."""


class ServedAdapters:
    """The base and the adapters of a server. All methods are called in the thread of its event loop."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: "PreTrainedTokenizerBase",
        base_name: str,
        folders: Mapping[str, Path],
        library: Path,
        max_loaded: int = 32,
        allow_base_mismatch: bool = False,
        max_bytes: int = 2_000_000_000,
    ) -> None:
        """Create it.

        Args:
            engine: holds the model.
            tokenizer: of the base.
            base_name: the name that selects the base.
            folders: adapters by name, besides those of the library; they come first.
            library: the library's folder.
            max_loaded: adapters that are in memory at once.
            max_bytes: their size in memory.
            allow_base_mismatch: load adapters that were trained on another base.
        """
        self.engine = engine
        self.base = ServedModel(base_name, None, tokenizer, engine.company)
        self.folders, self.library = dict(folders), library
        self.max_loaded, self.max_bytes, self.allow_base_mismatch = max_loaded, max_bytes, allow_base_mismatch
        self._loaded: dict[_Terms, ServedModel] = {}  # the least recently used one first
        self._replaced: list[ServedModel] = []
        self._loads = itertools.count(1)
        self._loading = asyncio.Lock()
        self._released = asyncio.Event()

    def names(self) -> list[str]:
        """Return the names of all adapters that can be used, loaded or not. Those that are no valid text cannot."""
        found = dict.fromkeys([*self.folders, *library_names(self.library)])
        return [name for name in found if name != self.base.name and name.encode(errors="ignore").decode() == name]

    def loaded(self) -> list[str]:
        """Return the names of the adapters in memory."""
        return [terms[0][0] for terms in self._loaded if not _is_mix(terms)]

    async def acquire(self, name: str, mix: Mapping[str, float] = MappingProxyType({})) -> ServedModel:
        """Return the base, an adapter or a mix, and hold it; it is loaded if it is not in memory.

        Args:
            name: the base's name, an adapter's name, or both with a colon between them.
            mix: names of adapters, and the factors on their updates. One with the factor 0 is left out.

        Raises:
            ApiError: there is no such adapter, it cannot be loaded, or it cannot be part of a mix.
            WaitedTooLong: others are loaded first, or all in memory are in use.
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
        """End what `acquire` began."""
        served.users -= 1
        self._released.set()
        self._unload_replaced()

    async def unload(self, name: str) -> None:
        """Take an adapter out of memory; requests that hold it end with it.

        Raises:
            ApiError: it is not in memory.
        """
        if name not in self.loaded():
            raise ApiError(
                404, _("the adapter {name!r} is not loaded").format(name=name), "lora_name", "model_not_found"
            )
        self.forget(name)

    def forget(self, name: str) -> None:
        """Take an adapter and the mixes with it out of memory; requests that hold one of them end with it."""
        for terms in [terms for terms in self._loaded if any(name == part for part, _weight in terms)]:
            self._replaced.append(self._loaded.pop(terms))
        self._unload_replaced()

    def find(self, name: str, param: str = "model") -> str:
        """Return the name of the base or of the adapter that a request names in the field `param`.

        Raises:
            ApiError: there is none.
        """
        called, names = name.removeprefix(f"{self.base.name}:"), [self.base.name, *self.names()]
        if called in names:  # a name is looked up in a list and is no path
            return called
        near = get_close_matches(called, names, n=_NEAR)
        shown = _("; did you mean {names}?").format(names=", ".join(map(repr, near))) if near else ""
        message = _("no model or adapter is called {name!r}{near}").format(name=called[:100], near=shown)
        raise ApiError(404, message, param, "model_not_found")

    def _terms(self, name: str, mix: Mapping[str, float]) -> _Terms:
        """Return what a request names; nothing for the base."""
        called = self.find(name)
        if not mix:
            return () if called == self.base.name else ((called, None),)
        if called != self.base.name:
            message = _("model names the adapter {name!r}; with adapters, it must be the base, {base!r}").format(
                name=called, base=self.base.name
            )
            raise ApiError(400, message, "adapters", "invalid_value")
        found = [(self.find(part, "adapters"), weight) for part, weight in mix.items()]
        if any(part == self.base.name for part, _weight in found):
            message = _("adapters names the base, {base!r}, which is always part of a mix").format(base=self.base.name)
            raise ApiError(400, message, "adapters", "invalid_value")
        return tuple(sorted((part, float(weight)) for part, weight in found if weight))

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter, whose name is one of `names`."""
        return self.folders.get(name, self.library / name)

    def _current(self, terms: _Terms) -> ServedModel | None:
        """Return what is loaded of these adapters, and mark it as used, unless their files have changed."""
        served = self._loaded.pop(terms, None)
        if served is None:
            return None
        if served.files != self._file_states(terms):
            self._replaced.append(served)
            self._unload_replaced()
            return None
        self._loaded[terms] = served
        return served

    def _file_states(self, terms: _Terms) -> tuple[FileStates, ...]:
        return tuple(file_states(self.folder(name)) for name, _weight in terms)

    async def _load_in_turn(self, terms: _Terms) -> ServedModel:
        """Load what is not in memory; one after the other, and only if there is room."""
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self._loading)
            if (served := self._current(terms)) is not None:  # another request has loaded it meanwhile
                return served
            size = await asyncio.to_thread(_memory, [self.folder(part) for part, _weight in terms])
            await self._make_room(_sum_text(terms), size)
            loading = asyncio.create_task(self._load(terms, size, turn.pop_all()))
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # if nobody waits any more
        return await asyncio.shield(loading)  # what is half loaded would be in the model for ever

    async def _load(self, terms: _Terms, size: int, turn: AsyncExitStack) -> ServedModel:
        """Load adapters of this size in memory, and end the turn."""
        async with turn:
            return await self._load_now(terms, size)

    async def _load_now(self, terms: _Terms, size: int) -> ServedModel:
        name = _sum_text(terms)
        key, engine, mismatch = f"{name}#{next(self._loads)}", self.engine, self.allow_base_mismatch
        folders = [self.folder(part) for part, _weight in terms]
        weights = [weight for _part, weight in terms if weight is not None]
        files = self._file_states(terms)
        load = (
            partial(load_mix, engine.model, folders, weights, key, mismatch)
            if weights
            else partial(load_served, engine.model, folders[0], key, mismatch)
        )
        try:
            digest = await asyncio.to_thread(_digest, folders, weights)
            tokenizer = self.base.tokenizer
            for _weight, folder in sorted(zip(map(abs, weights or [1.0]), folders, strict=True)):
                tokenizer = with_chat_template(tokenizer, folder)  # the last one has the largest part
            company = await asyncio.wrap_future(engine.call(load))
        except TsugikiError as error:
            reason = str(error)
            for term, folder in zip(terms, folders, strict=True):
                reason = reason.replace(str(folder), term[0])  # clients must not see paths of the server
            if _is_mix(terms):
                param, message = "adapters", _("the mix {name!r} cannot be used: {error}")
            else:
                param, message = "model", _("the adapter {name!r} cannot be used: {error}")
            raise ApiError(400, message.format(name=name, error=reason), param, "adapter_unusable") from error
        served = ServedModel(name, key, tokenizer, company, digest, files, size)
        if self._file_states(terms) != files:  # then what was read may have another digest
            self._replaced.append(served)
            self._unload_replaced()
            raise ApiError(
                503, _("{name!r} was replaced while it was loaded; try again").format(name=name), retry_after=1
            )
        self._loaded[terms] = served
        return served

    async def _make_room(self, name: str, size: int) -> None:
        """Unload adapters that no request holds, until one of this size may be loaded.

        If all are held, the least recently used one is not given to new requests, so that room comes when those that
        hold it have ended, however often all are asked for.
        """
        if size > self.max_bytes:
            message = _("the adapter {name!r} takes {size} of memory, which is more than the server has for adapters")
            raise ApiError(400, message.format(name=name, size=format_size(size)), "model", "adapter_unusable")
        while self._is_full(size):
            leaving = next((terms for terms, one in self._loaded.items() if one.users == 0), None)
            if leaving is None and not self._replaced:
                leaving = next(iter(self._loaded))
            if leaving is not None:
                self._replaced.append(self._loaded.pop(leaving))
                self._unload_replaced()
                continue
            self._released.clear()
            await self._released.wait()

    def _is_full(self, size: int) -> bool:
        held = [*self._loaded.values(), *self._replaced]
        return len(held) >= self.max_loaded or sum(one.bytes for one in held) + size > self.max_bytes

    def _unload_replaced(self) -> None:
        for one in [one for one in self._replaced if one.users == 0]:
            self._replaced.remove(one)
            key = one.key
            assert key is not None
            with suppress(TsugikiError):  # the engine stops
                self.engine.call(partial(remove_adapter, self.engine.model, key))


def load_served(model: "PreTrainedModel", folder: Path, key: str, allow_base_mismatch: bool = False) -> Company:
    """Load an adapter into the model that is served, and find out with which others it can be computed.

    `load_adapter` also computes logits with and without it, to warn of an adapter without any effect. Here that would
    take most of the time, in which no other request gets a token.

    Args:
        model: the model.
        folder: the adapter's folder.
        key: the adapter's name in the model.
        allow_base_mismatch: as in `load_adapter`.

    Raises:
        TsugikiError: it cannot be loaded, or not computed together with a cache of keys and values.
    """
    _refuse_new_words(model, folder)
    config = read_adapter_config(folder)
    add_adapter(model, read_adapter(model, folder, config, allow_base_mismatch=allow_base_mismatch), key)
    if not allow_base_mismatch:
        warn_of_another_name(model, folder)
    return _company(model, key)


def load_mix(
    model: "PreTrainedModel",
    folders: Sequence[Path],
    weights: Sequence[float],
    key: str,
    allow_base_mismatch: bool = False,
) -> Company:
    """Load the weighted sum of adapters as one adapter, and find out with which others it can be computed.

    Args:
        model: the model.
        folders: the adapters' folders.
        weights: the factors on their updates.
        key: the sum's name in the model.
        allow_base_mismatch: as in `load_adapter`.

    Raises:
        TsugikiError: as for `load_served`, or an adapter has more than LoRA's updates of layers, which cannot be added.
    """
    for folder in folders:
        _refuse_new_words(model, folder)
        refuse_more_than_updates(read_lora_weights(folder), folder.name)
    add_adapter(model, load_weighted_sum(model, folders, weights, allow_base_mismatch=allow_base_mismatch), key)
    return _company(model, key)


def _refuse_new_words(model: "PreTrainedModel", folder: Path) -> None:
    words = words_for(model, folder)
    if words is not None and words != len(model.get_input_embeddings().weight):
        raise TsugikiError(_("it adds words to the vocabulary, which other adapters do not have; merge it instead"))


def _company(model: "PreTrainedModel", key: str) -> Company:
    """Find out with which rows those of the active adapter can be in a batch; if that fails, remove the adapter."""
    try:
        model.eval()
        try:
            with mixed_batch(model, [key]):
                pass
        except TsugikiError:  # it cannot be computed by rows
            return "same" if find_company(model) == "mixed" else "alone"
        return "mixed"
    except BaseException:
        remove_adapter(model, key)
        raise


def _is_mix(terms: _Terms) -> bool:
    return terms[0][1] is not None


def _sum_text(terms: _Terms) -> str:
    """Return an adapter's name, or a mix as people write it."""
    return " + ".join(name if weight is None else f"{weight:g} {name}" for name, weight in terms)


def _digest(folders: Sequence[Path], weights: Sequence[float]) -> str:
    """Return the digest of what an adapter computes, or a mix, whatever the order of its parts."""
    digests = [content_digest(folder) for folder in folders]
    if not weights:
        return digests[0]
    return sha256(f"{digest} {weight!r}\n".encode() for digest, weight in sorted(zip(digests, weights, strict=True)))


def _memory(folders: Sequence[Path]) -> int:
    """Return how many bytes adapters take in memory, in float32; files that cannot be read do not count."""
    size = 0
    with suppress(TsugikiError):
        for folder in folders:
            size += sum(4 * tensor.numel() for tensor in map_weights(folder).values())
    return size


def file_states(folder: Path, names: Sequence[str] = _FILES) -> FileStates:
    """Return what changes if these files of the adapter in a folder are replaced."""
    states = []
    for name in names:
        with suppress(OSError):
            stat = (folder / name).stat()
            states.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(states)
