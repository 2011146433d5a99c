"""What is in the cache, for `tsugiki cache list`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder, folder_size
from tsugiki.io.file_names import MANIFEST_FILE
from tsugiki.io.formatting import format_size
from tsugiki.io.json import read_json
from tsugiki.language import _, marked
from tsugiki.report.formatting import Table

KINDS = {
    "quantized": marked("models in few bits"),
    "fingerprints": marked("fingerprints of large models"),
    "gguf": marked("GGUF files, converted"),
    "tokens": marked("tokenised texts"),
    "aozora": marked("downloaded works of Aozora Bunko"),
}
"""The folders in the cache, and what they hold."""


@dataclass(frozen=True)
class Cached:
    """One thing in the cache."""

    kind: str
    """One of `KINDS`."""
    name: str
    """Of the model, with its dtype; empty where only the sum of a kind is listed."""
    path: Path
    bytes: int
    used: float
    """When it was used last or written, in seconds since the epoch."""


def read_cache() -> list[Cached]:
    """Return what the cache holds: each quantised model, and the sum of every other kind."""
    found = []
    for kind in KINDS:
        folder = cache_folder(kind)
        parts = sorted(folder.glob("[!.]*")) if kind == "quantized" else [folder]
        found += [Cached(kind, _name(path), path, folder_size(path), path.stat().st_mtime) for path in _existing(parts)]
    return found


def cache_table(cached: Sequence[Cached]) -> Table:
    """Return a table with a row for each thing."""
    headers = [_("kind"), _("content"), _("size"), _("last used")]
    rows = [
        [
            one.kind,
            one.name or _(KINDS[one.kind]),
            format_size(one.bytes),
            datetime.fromtimestamp(one.used).strftime("%Y-%m-%d"),
        ]
        for one in cached
    ]
    return headers, rows


def cache_fields(one: Cached) -> dict[str, Any]:
    """Return one thing as values of JSON."""
    used = datetime.fromtimestamp(one.used).astimezone().isoformat(timespec="seconds")
    return {**asdict(one), "path": str(one.path), "name": one.name or None, "used": used}


def _existing(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.is_dir() and any(path.iterdir())]


def _name(path: Path) -> str:
    """Return the model and the dtype of a quantised model, by its manifest; empty for other folders."""
    try:
        facts = read_json(path / MANIFEST_FILE)["facts"]
        return f"{facts['model']} ({facts['base_dtype']})"
    except (TsugikiError, KeyError, TypeError):
        return ""
