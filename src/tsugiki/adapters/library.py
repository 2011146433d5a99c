"""The library: a folder that holds adapters by name, each as a PEFT folder; and facts about an adapter, read quickly.

The facts are from an adapter's config and from the header of its file of weights. The cache keeps them until a file in
the adapter's folder changes (`io.cache.kept_of_folders`), so ten thousand adapters are listed in less than a second.
"""

import dataclasses
import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tsugiki.adapters.files import adapter_weight_files, map_weights, read_adapter_config, read_base, read_peft_config
from tsugiki.adapters.lora_weights import parameter_factors, parse_tensors
from tsugiki.adapters.metadata import BaseReference
from tsugiki.adapters.saved_tokenizer import tokenizer_files
from tsugiki.adapters.verify import check_adapter, without_path
from tsugiki.errors import TsugikiError, summarise_list, unreadable, warn_caller
from tsugiki.io.atomic import DAY, new_folder, refuse_existing, remove_leftovers, rename_folder
from tsugiki.io.cache import kept_of_folders
from tsugiki.io.digests import read_manifest
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE
from tsugiki.io.locks import locked
from tsugiki.io.run_folder import CHECKPOINTS, checkpoints
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import BASE_ROW
from tsugiki.methods.table import methods_of

_MAX_CHARACTERS = 100
_MAX_BYTES = 200  # file systems allow 255, and temporary names are longer
_COPIED_FILES = (ADAPTER_CONFIG_FILE, METADATA_FILE, RECORD_FILE, "README.md", "LICENSE")
_FORBIDDEN = frozenset('/\\:*?"<>|')  # on at least one operating system


def library_folder() -> Path:
    """Return `$TSUGIKI_ADAPTERS`, or else `tsugiki/adapters` in the user's data folder; it may not exist yet."""
    configured = os.environ.get("TSUGIKI_ADAPTERS")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tsugiki" / "adapters"


def check_name(name: str) -> str:
    """Check that a folder can have this name on every operating system, and return the name."""
    forbidden = next((c for c in name if c in _FORBIDDEN or unicodedata.category(c) in ("Cc", "Cf", "Cs")), None)
    if forbidden is not None:
        raise TsugikiError(
            "an adapter cannot be called {name!r}: {forbidden!r} is not allowed in a name",
            name=name,
            forbidden=forbidden,
        )
    if not name or name != name.strip() or name[0] in ".-" or name[-1] == "." or name == BASE_ROW:
        raise TsugikiError(
            "an adapter cannot be called {name!r}: a name cannot be empty or {reserved}, begin with a dot or a "
            "dash, end with a dot, or begin or end with a space",
            name=name,
            reserved=BASE_ROW,
        )
    if len(name) > _MAX_CHARACTERS or len(name.encode()) > _MAX_BYTES:
        raise TsugikiError(
            "an adapter cannot be called {name}…: the name is longer than {most} characters",
            name=name[:20],
            most=_MAX_CHARACTERS,
        )
    return name


@dataclass(frozen=True)
class AdapterInfo:
    """Facts about an adapter."""

    method: str
    """The method's name, as `tsugiki methods` lists it."""
    ranks: tuple[int, ...]
    """The different ranks of its layers, in ascending order; empty if the method has no rank."""
    targets: tuple[str, ...]
    """The last components of the names of the layers that it changes, or the pattern that selects them."""
    base: BaseReference
    parameters: int
    size: int
    """Size of the weights file in bytes."""
    changed: float
    """The time when the weights file was written, in seconds since 1970."""


@dataclass(frozen=True)
class LibraryEntry:
    """A folder in the library."""

    name: str
    folder: Path
    info: AdapterInfo | None
    """None if the adapter is broken."""
    broken: str = ""
    """The problem of a broken adapter, as a clause; empty if it is not broken."""


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read the facts about the adapter in a folder; of its tensors, only names and shapes are read and checked."""
    config, tensors = read_adapter_config(folder), map_weights(folder)
    ranks, targets = set(), _configured_targets(config)
    if isinstance(config, LoraConfig):
        layers, others, problems = parse_tensors(read_peft_config(folder), tensors)
        if problems:
            raise TsugikiError(
                "{path} is broken: {problems}", path=folder / ADAPTER_FILE, problems=summarise_list(problems)
            )
        ranks = {layer.r for layer in layers.values()}
        targets = sorted({path.rpartition(".")[2] for path in layers})
        if parameter_factors(others):
            ranks |= {config.r}
            targets += sorted({name.rpartition(".")[2] for name in config.target_parameters or ()} - {"weight"})
    files = [path.stat() for path in adapter_weight_files(folder)]
    return AdapterInfo(
        " + ".join(methods_of(config)) or type(config).__name__,
        tuple(sorted(ranks)),
        tuple(targets),
        read_base(folder),
        sum(tensor.numel() for tensor in tensors.values()),
        sum(file.st_size for file in files),
        max(file.st_mtime for file in files),
    )


def read_library(library: Path) -> list[LibraryEntry]:
    """List the library's folders, sorted by name; a library that does not exist yet is empty.

    Hidden folders and files are ignored.
    """
    facts, folders = TypeAdapter(AdapterInfo), {name: library / name for name in library_names(library)}

    def read(folder: Path) -> Any:
        if not folder.is_dir():
            raise TsugikiError("it is a link to {target}, which is not a folder", target=folder.readlink())
        return facts.dump_python(read_adapter_info(folder), mode="json")

    found = kept_of_folders("adapters", repr(library.resolve()), folders, read)
    return [
        LibraryEntry(name, folders[name], None, without_path(str(read), folders[name]))
        if isinstance(read, TsugikiError)
        else LibraryEntry(name, folders[name], facts.validate_python(read))
        for name, read in found.items()
    ]


def member(name: str, library: Path) -> Path:
    """Return the folder, or the link to a folder, in the library that has this name, even if the adapter is broken."""
    names = library_names(library)
    if name in names:
        return library / name
    raise TsugikiError(
        "no adapter {name!r} in {library}{nearest}", name=name, library=library, nearest=_nearest(name, names)
    )


def adapter_folder(given: str, library: Path | None = None) -> Path:
    """Find the adapter that the user names: by the path of its folder, or else by its name in the library.

    If the folder is that of a run that has not finished, the adapter is that of its newest checkpoint. `library` is the
    user's library by default.
    """
    home = library or library_folder()
    path = _path(given)
    if path and (path / ADAPTER_CONFIG_FILE).is_file():
        return path
    if path and (checkpoint := _newest_checkpoint(path)):
        return checkpoint
    names = library_names(home)
    if given in names:
        return home / given
    if path and path.is_dir():
        raise TsugikiError("no adapter in {given}: it has no {file}", given=given, file=ADAPTER_CONFIG_FILE)
    raise TsugikiError(
        "no adapter {given!r}: there is no folder of this name, here or in {home}{nearest}",
        given=given,
        home=home,
        nearest=_nearest(given, [*names, *_near_folders(path)]),
    )


def adapter_of_run(run: Path) -> Path | None:
    """Return the folder with the adapter of a run: the run's own, or that of its newest checkpoint; None without any.

    Nothing is verified; that is done when the adapter is loaded or copied.
    """
    newest_first = (run, *reversed(checkpoints(run / CHECKPOINTS)))
    return next((folder for folder in newest_first if (folder / ADAPTER_CONFIG_FILE).is_file()), None)


def new_adapter_folder(given: str, library: Path | None = None) -> Path:
    """Return the folder for a new adapter: the given path, or a folder in the library if the user gives a name.

    A path contains a separator. Without `library`, the folder is in the user's library.
    """
    is_path = any(separator in given for separator in ("/", os.sep))
    out = Path(given).expanduser() if is_path else (library or library_folder()) / check_name(given)
    refuse_existing(out)
    return out


def copy_into_library(source: Path, library: Path, name: str | None = None) -> Path:
    """Copy the adapter in a folder, such as that of a run, into the library, and return its new folder.

    The run's record and the model card are copied as well; checkpoints and pages are not. The library is created if it
    does not exist. Without `name`, the adapter keeps its folder's name.
    """
    if not source.is_dir():
        raise TsugikiError("no adapter in {source}: it is not a folder", source=source)
    called = check_name(source.resolve().name if name is None else name)
    _refuse_taken(called, library, _("pass another {flag:name}"))
    check_adapter(source)
    with _only_writer(library):
        _refuse_taken(called, library, _("pass another {flag:name}"))
        with new_folder(library / called) as temporary:
            for file in files_of(source):
                shutil.copy2(source / file, temporary / file)
    return library / called


def files_of(folder: Path) -> list[str]:
    """Return the names of an adapter's files: config, weights, tokenizer, the record of its run, and its card."""
    weights = [path.name for path in adapter_weight_files(folder)]
    return [name for name in (*_COPIED_FILES, *weights, *tokenizer_files(folder)) if (folder / name).is_file()]


def rename_adapter(old: str, new: str, library: Path) -> Path:
    """Rename an adapter in the library, and return its new folder."""
    folder = member(old, library)
    target = library / check_name(new)
    _refuse_taken(new, library, _("choose another name"))
    with _only_writer(library):
        _refuse_taken(new, library, _("choose another name"))
        rename_folder(folder, target)
    return target


def _refuse_taken(name: str, library: Path, advice: str) -> None:
    if os.path.lexists(library / name):
        raise TsugikiError(
            "{name!r} is in the library {library} already; {advice}, or remove it first",
            name=name,
            library=library,
            advice=advice,
        )


@contextmanager
def _only_writer(library: Path) -> Iterator[None]:
    """Wait until no other process writes to the library, and remove what killed processes left in it."""
    with locked(library / ".lock", library):
        remove_leftovers(library, older_than=DAY)  # `pull` and `combine` write without the lock
        yield


def library_names(library: Path) -> list[str]:
    """Return the names of the library's folders, sorted, without looking into them."""
    try:
        with os.scandir(library) as entries:
            shown = (entry for entry in entries if not entry.name.startswith("."))
            return sorted(entry.name for entry in shown if entry.is_symlink() or entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(library, error) from error


def _path(given: str) -> Path | None:
    """Return the argument as a path, or None if it cannot be one."""
    try:
        path = Path(given).expanduser()
        path.is_dir()
    except (OSError, RuntimeError):  # the name is too long, or ~USER does not exist
        return None
    return path if given else None


def _newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of an adapter in the folder of a run that is not damaged; None if there is none."""
    for folder in reversed(checkpoints(run / CHECKPOINTS)):
        if (folder / ADAPTER_CONFIG_FILE).is_file():
            try:
                read_manifest(folder)
            except TsugikiError:
                continue
            message = _(
                "the run in {run} has not finished; its adapter is that of {checkpoint}",
                run=run,
                checkpoint=folder.name,
            )
            warn_caller(message)
            return folder
    return None


def _near_folders(path: Path | None) -> list[str]:
    """Return the folder beside a path that holds an adapter or a run, and has nearly its name."""
    if path is None or not path.parent.is_dir():
        return []
    beside = {folder.name: folder for folder in path.parent.iterdir() if folder.is_dir()}
    near = [beside[name] for name in get_close_matches(path.name, beside, n=1)]
    return [
        str(folder) for folder in near if (folder / ADAPTER_CONFIG_FILE).is_file() or checkpoints(folder / CHECKPOINTS)
    ]


def _nearest(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return _("; did you mean {name!r}?", name=near[0]) if near else ""


def _configured_targets(config: Any) -> list[str]:
    """Return the targets that the config names, under any method's name for that setting."""
    fields = dataclasses.asdict(config)
    names = ("target_modules", "target_parameters")
    targets = next((fields[name] for name in names if fields.get(name)), ())
    return [targets] if isinstance(targets, str) else sorted(targets)
