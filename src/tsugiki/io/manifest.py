"""The manifest of a folder: size and digest of each file, and facts about the files.

    write_manifest(folder, {"step": 40})    # after all other files
    read_manifest(folder)                   # {"step": 40}; or an error that names the first file that has changed

The manifest contains the digest of its own content, so a change of any bit in the folder is found.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.io.digests import file_sha256, sha256
from tsugiki.io.file_names import MANIFEST_FILE
from tsugiki.io.json import read_json, to_json_text, write_json
from tsugiki.language import _

_FORMAT = 1


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `manifest.json` with the sizes and the SHA-256 digests of all files in a folder and its subfolders.

    Args:
        folder: the folder, which must be complete; usually a temporary folder (see `io.atomic`).
        facts: facts about the files, as JSON values.

    Raises:
        TsugikiError: the manifest cannot be written.
        OSError: a file cannot be read.
    """
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }
    content = {"format": _FORMAT, "files": files, "facts": dict(facts)}
    write_json(folder / MANIFEST_FILE, {**content, "sha256": sha256([_to_bytes(content)])})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Check every file that the manifest of a folder lists, and return the facts.

    Files that the manifest does not list are ignored.

    Raises:
        TsugikiError: there is no manifest, another version wrote it, or a file is missing or has changed.
    """
    path = folder / MANIFEST_FILE
    content = read_json(
        path, missing=_("{folder} is incomplete: it has no {file}").format(folder=folder, file=MANIFEST_FILE)
    )
    # Another spelling of the same values, such as 1E-5 for 1e-5, is a change as well.
    as_written = path.read_bytes() == _to_bytes(content)
    if content.pop("sha256", None) != sha256([_to_bytes(content)]) or not as_written:
        raise TsugikiError(
            _("{folder} is damaged: {file} has changed since it was written").format(folder=folder, file=MANIFEST_FILE)
        )
    if content.get("format") != _FORMAT:
        raise TsugikiError(_("{path} has a format that this version of Tsugiki cannot read").format(path=path))
    for name, written in content["files"].items():
        problem = _problem(folder / name, written)
        if problem:
            raise TsugikiError(
                _("{folder} is damaged: {name} {problem}").format(folder=folder, name=name, problem=problem)
            )
    facts: dict[str, Any] = content["facts"]
    return facts


def _problem(path: Path, written: Mapping[str, Any]) -> str:
    """Return the problem with a file, as a predicate for a message; empty if there is none."""
    try:
        size = path.stat().st_size
        if size != written["size"]:
            return _("has {size:,} bytes instead of {expected:,}").format(size=size, expected=written["size"])
        return "" if file_sha256(path) == written["sha256"] else _("has changed since it was written")
    except FileNotFoundError:
        return _("is missing")
    except OSError as error:
        return _("cannot be read ({reason})").format(reason=error.strerror or error)


def _to_bytes(content: Mapping[str, Any]) -> bytes:
    return to_json_text(content).encode("utf-8", errors="replace")
