"""The view Adapters: the library as a table, a page for each adapter; rename, remove, export, and save a mix.

An adapter is named by its name in the library and never by a path. Figures, tables and pictures are those of
`tsugiki adapters list` and `show`.
"""

import asyncio
import math
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from threading import Lock
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tsugiki.adapters.algebra.combine import combine, load_weighted_adapters, write_combined
from tsugiki.adapters.files import read_adapter_config
from tsugiki.adapters.library import (
    check_name,
    copy_into_library,
    files_of,
    member,
    new_adapter_folder,
    read_adapter_info,
    rename_adapter,
)
from tsugiki.adapters.metadata import BaseReference, Metadata, read_metadata
from tsugiki.adapters.verify import check_adapter, without_path
from tsugiki.base.identity import BaseIdentity, identity_of, why_different
from tsugiki.errors import TsugikiError
from tsugiki.export.gguf_adapter import MergedOnlyError, export_gguf_adapter
from tsugiki.io.atomic import remove_folder
from tsugiki.io.cache import kept_of_folders
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE
from tsugiki.io.formatting import format_size
from tsugiki.language import _, language
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import base_alone
from tsugiki.report.adapter import (
    AdapterReport,
    adapter_page,
    adapter_sections,
    inspect_adapter,
    ranks_text,
    record_of,
)
from tsugiki.report.formatting import format_change, format_with_interval
from tsugiki.report.record_text import change_of_run, summary_sentence
from tsugiki.report.run import RESULTS
from tsugiki.report.sections import selected, to_json
from tsugiki.serve.errors import ApiError
from tsugiki.serve.folders import base_name
from tsugiki.serve.page import HEADERS
from tsugiki.serve.protocol import Fields, MixField, NameRequest, read
from tsugiki.serve.routes import json_route, post_route
from tsugiki.serve.security import PAGE_API
from tsugiki.serve.served_adapters import ServedAdapters
from tsugiki.serve.uploads import data_names
from tsugiki.training.record.run_record import RunRecord

_CARD = "README.md"
_LARGEST_CARD = 200_000  # bytes
_PART = 1 << 20  # bytes that are read at once
_REPORT_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}

_drawing = Lock()
"""Held while plots are drawn, because matplotlib's settings are global in the process."""


class Renaming(NameRequest):
    """A request to rename an adapter, or to copy that of a run under a name."""

    to: Annotated[str, Field(max_length=200)]


class Exporting(NameRequest):
    """A request to download an adapter as a file."""

    kind: Literal["zip", "gguf"]


class Combining(Fields):
    """A request to save a mix as a new adapter."""

    adapters: MixField
    name: Annotated[str, Field(max_length=200)]


def library_routes(adapters: ServedAdapters) -> list[Route]:
    """Return the routes of the view."""
    view = LibraryView(adapters)
    return [
        Route(f"{PAGE_API}adapters", view.table),
        json_route("adapters/{name}", view.details),
        Route(f"{PAGE_API}adapters/{{name}}/report", view.report),
        Route(f"{PAGE_API}export-adapter", view.export, methods=["POST"]),
        Route(f"{PAGE_API}rename-adapter", view.rename, methods=["POST"]),
        Route(f"{PAGE_API}remove-adapter", view.remove, methods=["POST"]),
        post_route("save-mix", Combining, view.save_mix),
        post_route("keep-run", Renaming, view.keep_run),
    ]


class LibraryView:
    """Answers the page's requests about the library. A name that is not allowed or taken is an ApiError."""

    def __init__(self, adapters: ServedAdapters) -> None:
        self.adapters = adapters
        self._base: BaseIdentity | None = None

    async def table(self, request: Request) -> Response:
        """Answer with the table of the adapters."""
        base = await self._identity()
        names = await asyncio.to_thread(self.adapters.names)
        folders = {name: self.adapters.folder(name) for name in names}
        loaded = set(self.adapters.loaded())

        def rows() -> list[dict[str, Any]]:
            table, key = [], f"{self.adapters.library.resolve()!r} {language()}"
            for name, found in kept_of_folders("rows", key, folders, _row).items():
                if isinstance(found, TsugikiError):
                    found = {"broken": without_path(str(found), folders[name])}, None
                row, trained_on = found
                other = trained_on and why_different(BaseReference(**trained_on), base)
                flags = {"loaded": name in loaded, "given": name in self.adapters.folders}
                table.append({"name": name, **row, **flags, "other_base": other or None})
            return table

        listed = await asyncio.to_thread(rows)
        return JSONResponse({"base": self.adapters.base.name, "adapters": listed})

    def details(self, request: Request) -> dict[str, Any]:
        """Return the part of an adapter's page that is shown first, without its layers."""
        folder = self._find(request.path_params["name"])
        info, provenance, record = read_adapter_info(folder), read_metadata(folder).provenance, record_of(folder)
        base = info.base.model_copy(update={"name": info.base.name and base_name(info.base.name)})
        shown = replace(info, base=base)
        report = AdapterReport(Path(folder.name), shown, provenance, record, (), {}, ())
        return {
            "sections": to_json(selected(adapter_sections(report), "adapter", *RESULTS)),
            "card": _card(folder),
        }

    def report(self, request: Request) -> Response:
        """Answer with the page that `tsugiki adapters show --html` writes."""
        name = request.path_params["name"]
        report = inspect_adapter(self._find(name))
        with _drawing:
            page = adapter_page(report)
        saved = f"attachment; filename*=UTF-8''{quote(name)}.html"
        headers = {**_REPORT_HEADERS, "Content-Disposition": saved}
        return Response(page, media_type="text/html", headers=headers)

    async def export(self, request: Request) -> Response:
        """Answer with an adapter's folder as a zip, or with a GGUF file of it."""
        asked = await read(Exporting, request)
        folder = self._find(asked.name)
        if asked.kind == "gguf":
            return Response(await asyncio.to_thread(_gguf, folder), media_type="application/octet-stream")
        await asyncio.to_thread(check_adapter, folder)
        return StreamingResponse(_zipped(folder, asked.name.replace("/", "-")), media_type="application/zip")

    async def rename(self, request: Request) -> Response:
        """Rename an adapter of the library; running requests finish with it."""
        asked = await read(Renaming, request)
        self._own(asked.name)
        self._check_free(asked.to)
        await asyncio.to_thread(rename_adapter, asked.name, asked.to, self.adapters.library)
        self.adapters.forget(asked.name)
        return JSONResponse({"name": asked.to})

    async def remove(self, request: Request) -> Response:
        """Remove an adapter from the library; running requests finish with it."""
        name = (await read(NameRequest, request)).name
        self._own(name)
        folder = await asyncio.to_thread(member, name, self.adapters.library)
        await asyncio.to_thread(remove_folder, folder)
        self.adapters.forget(name)
        return JSONResponse({"name": name})

    def save_mix(self, asked: Combining) -> dict[str, Any]:
        """Save the weighted sum of adapters in the library, as `tsugiki adapters combine` does."""
        folders, weights = [self._find(part) for part in asked.adapters], list(asked.adapters.values())
        self._check_free(asked.name)
        out = new_adapter_folder(asked.name, self.adapters.library)
        parts = load_weighted_adapters(folders, weights)
        combined = combine(parts, allow_base_mismatch=self.adapters.allow_base_mismatch)
        write_combined(combined, out, folders, weights)
        return {"name": asked.name}

    def keep_run(self, asked: Renaming) -> dict[str, Any]:
        """Copy a run's newest adapter into the library, as `tsugiki adapters add` does."""
        folder = self._find(asked.name)
        self._check_free(asked.to)
        copy_into_library(folder, self.adapters.library, asked.to)
        return {"name": asked.to}

    def _find(self, name: str) -> Path:
        """Return the folder of an adapter; 404 for the base, and for a name that is not exactly an adapter's."""
        if name == self.adapters.base.name or self.adapters.find(name) != name:
            raise ApiError(404, _("no adapter is called {name!r}", name=name[:100]), "name", "not_found")
        return self.adapters.folder(name)

    async def _identity(self) -> BaseIdentity:
        if self._base is None:
            model = self.adapters.engine.model

            def identity() -> BaseIdentity:
                with base_alone(model):
                    return identity_of(model)

            self._base = await asyncio.wrap_future(self.adapters.engine.call(identity))
        return self._base

    def _own(self, name: str) -> None:
        """Check that an adapter belongs to the library, so that the page may change it."""
        self._find(name)
        if name in self.adapters.folders:
            message = _(
                "{name!r} was given when the server was started, so it stays as it is until the server ends", name=name
            )
            raise ApiError(409, message, "name", "given_at_start")

    def _check_free(self, name: str) -> None:
        """Check a new name. That the library does not contain it is checked when the adapter is written."""
        check_name(name)
        if name == self.adapters.base.name or name in self.adapters.folders:
            raise TsugikiError("requests use the name {name!r} for another model; choose another name", name=name)


def _row(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the row of an adapter in the table, and its base, as JSON values."""
    info, config, metadata = read_adapter_info(folder), read_adapter_config(folder), read_metadata(folder)
    record = record_of(folder)
    mixes = isinstance(config, LoraConfig) and not config.use_dora and not config.modules_to_save
    return {
        "broken": None,
        "method": info.method,
        "rank": ranks_text(info.ranks),
        "base": info.base.name,
        "size": format_size(info.size),
        "bytes": info.size,
        "changed": info.changed,
        "chat": (folder / CHAT_TEMPLATE_FILE).is_file(),
        "mixes": mixes and config.bias == "none" and not config.trainable_token_indices,
        "held_out": _held_out(record),
        "origin": _origin(metadata, record),
    }, info.base.model_dump(mode="json")


def _held_out(record: RunRecord | None) -> dict[str, Any] | None:
    """Return the perplexity before and after training with intervals, and the change of the bits per character."""
    if record is None or len(record.evaluations) < 2:
        return None
    before, after = record.evaluations[0], record.evaluations[-1]
    return {
        "before": format_with_interval(before.perplexity, before.perplexity_interval),
        "after": format_with_interval(after.perplexity, after.perplexity_interval),
        "perplexity": after.perplexity if math.isfinite(after.perplexity) else None,
        "change": format_change(change_of_run(record)),
        "described": summary_sentence(record),
    }


def _origin(metadata: Metadata, record: RunRecord | None) -> dict[str, Any] | None:
    """Return where an adapter comes from: other adapters, or a training run."""
    if (made := metadata.provenance) is not None:
        origin, sources = {"operation": made.operation}, made.sources
    elif record is not None:
        origin = {"operation": "train", "data": data_names(record.config.data)}
        sources = () if record.started_from is None else (record.started_from,)
    else:
        return None
    return {**origin, "sources": [source.model_dump(include={"name", "weight"}) for source in sources]}


def _zipped(folder: Path, name: str) -> Iterator[bytes]:
    """Yield the parts of a zip with an adapter's folder; its file has no name and goes away when it was read."""
    with TemporaryFile() as packed:
        with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
            for file in files_of(folder):
                archive.write(folder / file, f"{name}/{file}")
        packed.seek(0)
        while part := packed.read(_PART):
            yield part


def _gguf(folder: Path) -> bytes:
    """Return the content of an adapter's GGUF file for llama.cpp; no file stays on the disk."""
    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "adapter.gguf"
        try:
            export_gguf_adapter(folder, file)
        except MergedOnlyError as error:
            raise TsugikiError(
                "{name} alone cannot be a GGUF file: {problems}; “tsugiki export” writes one with its base",
                name=folder.name,
                problems=error.problems,
            ) from error
        return file.read_bytes()


def _card(folder: Path) -> str | None:
    """Return the model card, without the settings for the hub at its beginning."""
    path = folder / _CARD
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST_CARD:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    return text.strip() or None
