"""List the content of the cache, for `tsugiki cache list`."""

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
from tsugiki.report.table import Table

KINDS = {
    "quantized": marked("models in few bits"),
    "fingerprints": marked("fingerprints of large models"),
    "gguf": marked("GGUF files, converted"),
    "tokens": marked("tokenised texts"),
    "references": marked("log-probabilities under references"),
    "aozora": marked("downloaded works of Aozora Bunko"),
}
"""The folders in the cache, and what they hold."""


@dataclass(frozen=True)
class Cached:
    """An entry of the list: a quantised model, or everything of another kind."""

    kind: str
    """One of `KINDS`."""
    name: str
    """Name of the model, with its dtype; empty for the sum of a kind."""
    path: Path
    bytes: int
    used: float
    """When it was last used or written, in seconds since the epoch."""


def read_cache() -> list[Cached]:
    """Return an entry for each quantised model, and one for the sum of every other kind."""
    cached = []
    for kind in KINDS:
        folder = cache_folder(kind)
        parts = sorted(folder.glob("[!.]*")) if kind == "quantized" else [folder]
        filled = [path for path in parts if path.is_dir() and any(path.iterdir())]
        cached += [Cached(kind, _name(path), path, folder_size(path), path.stat().st_mtime) for path in filled]
    return cached


def cache_table(cached: Sequence[Cached]) -> Table:
    """Return a table with a row for each entry."""
    headers = [_("kind"), _("content"), _("size"), _("last used")]
    rows = []
    for entry in cached:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
        rows.append([entry.kind, entry.name or _(KINDS[entry.kind]), format_size(entry.bytes), used])
    return Table(headers, rows)


def cache_fields(entry: Cached) -> dict[str, Any]:
    """Return an entry as a JSON object."""
    used = datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds")
    return {**asdict(entry), "path": str(entry.path), "name": entry.name or None, "used": used}


def _name(path: Path) -> str:
    """Return the name and the dtype of a quantised model from its manifest; empty for other folders."""
    try:
        facts = read_json(path / MANIFEST_FILE)["facts"]
        return f"{facts['model']} ({facts['base_dtype']})"
    except (TsugikiError, KeyError, TypeError):
        return ""
