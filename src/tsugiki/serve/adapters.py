"""The adapters that requests can name: those of the library, and folders that the server was started with.

An adapter is loaded at its first use, and verified whole. Every load gets another name in the model. So an adapter that
was replaced on the disk is a new one from the next request on, and requests that began with the old one end with it.

A request holds an adapter from `acquire` to `release`. Of those that no request holds, the least recently used one
makes room for another.
"""

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tsugiki.adapters.chat_template import with_chat_template
from tsugiki.adapters.format import load_adapter
from tsugiki.adapters.library import library_names
from tsugiki.adapters.vocabulary import words_for
from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.language import _
from tsugiki.lora.graft import remove_adapter
from tsugiki.lora.mixed_batch import mixed_batch
from tsugiki.serve.company import find_company
from tsugiki.serve.engine import Engine
from tsugiki.serve.errors import ApiError
from tsugiki.serve.request import Company

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FileStates: TypeAlias = tuple[tuple[str, int, int, int], ...]
_NEAR = 3  # names in an error


@dataclass(eq=False)
class ServedModel:
    """The base or an adapter, as requests use it."""

    name: str
    key: str | None
    """The adapter's name in the model; None: the base."""
    tokenizer: "PreTrainedTokenizerBase"
    """With the chat template of the adapter, if it has one."""
    company: Company
    files: _FileStates = ()
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
    ) -> None:
        """Create it.

        Args:
            engine: holds the model.
            tokenizer: of the base.
            base_name: the name that selects the base.
            folders: adapters by name, besides those of the library; they come first.
            library: the library's folder.
            max_loaded: adapters that are in memory at once.
            allow_base_mismatch: load adapters that were trained on another base.
        """
        self.engine = engine
        self.base = ServedModel(base_name, None, tokenizer, engine.company)
        self.folders, self.library = dict(folders), library
        self.max_loaded, self.allow_base_mismatch = max_loaded, allow_base_mismatch
        self._loaded: dict[str, ServedModel] = {}  # the least recently used one first
        self._replaced: list[ServedModel] = []
        self._loads = itertools.count(1)
        self._loading = asyncio.Lock()
        self._released = asyncio.Event()

    def names(self) -> list[str]:
        """Return the names of all adapters that can be used, loaded or not."""
        found = dict.fromkeys([*self.folders, *library_names(self.library)])
        return [name for name in found if name != self.base.name]

    def loaded(self) -> list[str]:
        """Return the names of the adapters in memory."""
        return list(self._loaded)

    async def acquire(self, name: str) -> ServedModel:
        """Return the base or an adapter, and hold it; it is loaded if it is not in memory.

        Args:
            name: the base's name, an adapter's name, or both with a colon between them.

        Raises:
            ApiError: there is no such adapter, or it cannot be loaded.
        """
        called = self.find(name)
        if called == self.base.name:
            self.base.users += 1
            return self.base
        folder = self.folder(called)
        if (served := self._current(called, folder)) is None:
            async with self._loading:
                served = self._current(called, folder) or await self._load(called, folder)
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
        if name not in self._loaded:
            raise ApiError(
                404, _("the adapter {name!r} is not loaded").format(name=name), "lora_name", "model_not_found"
            )
        self._replaced.append(self._loaded.pop(name))
        self._unload_replaced()

    def find(self, name: str) -> str:
        """Return the name of the base or of the adapter that a request names.

        Raises:
            ApiError: there is none.
        """
        called, names = name.removeprefix(f"{self.base.name}:"), [self.base.name, *self.names()]
        if called in names:  # a name is looked up in a list and is no path
            return called
        near = get_close_matches(called, names, n=_NEAR)
        shown = _("; did you mean {names}?").format(names=", ".join(map(repr, near))) if near else ""
        message = _("no model or adapter is called {name!r}{near}").format(name=called[:100], near=shown)
        raise ApiError(404, message, param="model", code="model_not_found")

    def folder(self, name: str) -> Path:
        """Return the folder of an adapter, whose name is one of `names`."""
        return self.folders.get(name, self.library / name)

    def _current(self, name: str, folder: Path) -> ServedModel | None:
        """Return an adapter that is loaded, and mark it as used, unless its files have changed."""
        served = self._loaded.pop(name, None)
        if served is None:
            return None
        if served.files != _file_states(folder):
            self._replaced.append(served)
            self._unload_replaced()
            return None
        self._loaded[name] = served
        return served

    async def _load(self, name: str, folder: Path) -> ServedModel:
        await self._make_room()
        key, model = f"{name}#{next(self._loads)}", self.engine.model
        files = _file_states(folder)
        try:
            tokenizer = with_chat_template(self.base.tokenizer, folder)
            company = await asyncio.wrap_future(
                self.engine.call(lambda: load_served(model, folder, key, self.allow_base_mismatch))
            )
        except TsugikiError as error:
            message = _("the adapter {name!r} cannot be used: {error}").format(name=name, error=error)
            raise ApiError(400, message, param="model", code="adapter_unusable") from error
        served = ServedModel(name, key, tokenizer, company, files)
        self._loaded[name] = served
        return served

    async def _make_room(self) -> None:
        """Unload adapters that no request holds, until another one may be loaded; wait if all are held."""
        while len(self._loaded) + len(self._replaced) >= self.max_loaded:
            idle = next((name for name, one in self._loaded.items() if one.users == 0), None)
            if idle is not None:
                self._replaced.append(self._loaded.pop(idle))
                self._unload_replaced()
                continue
            self._released.clear()
            try:
                await asyncio.wait_for(self._released.wait(), self.engine.limits.seconds)
            except TimeoutError as error:
                raise ApiError(
                    503,
                    _("all {count} adapters in memory are in use; try again later").format(count=self.max_loaded),
                    code="adapters_in_use",
                    retry_after=5,
                ) from error

    def _unload_replaced(self) -> None:
        for one in [one for one in self._replaced if one.users == 0]:
            self._replaced.remove(one)
            key = one.key
            assert key is not None
            with suppress(TsugikiError):  # the engine stops
                self.engine.call(partial(remove_adapter, self.engine.model, key))


def load_served(model: "PreTrainedModel", folder: Path, key: str, allow_base_mismatch: bool = False) -> Company:
    """Load an adapter into the model that is served, and find out with which others it can be computed.

    Args:
        model: the model.
        folder: the adapter's folder.
        key: the adapter's name in the model.
        allow_base_mismatch: as in `load_adapter`.

    Raises:
        TsugikiError: it cannot be loaded, or not computed together with a cache of keys and values.
    """
    words = words_for(model, folder)
    if words is not None and words != len(model.get_input_embeddings().weight):
        raise TsugikiError(_("it adds words to the vocabulary, which other adapters do not have; merge it instead"))
    load_adapter(model, folder, key, allow_base_mismatch=allow_base_mismatch)
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


def _file_states(folder: Path) -> _FileStates:
    """Return what changes if the adapter in a folder is replaced."""
    states = []
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, CHAT_TEMPLATE_FILE):
        with suppress(OSError):
            stat = (folder / name).stat()
            states.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(states)
