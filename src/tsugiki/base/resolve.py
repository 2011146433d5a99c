"""Find a model's files by its name (embedded, a folder, a GGUF file, or a hub id); read its config and its headers.

A GGUF file is converted to a folder in the cache (see `base.gguf`). The files of a model on the Hugging Face hub are
downloaded into huggingface_hub's cache; `USER/NAME@REVISION` names a branch, a tag or a commit. Weights are taken from
safetensors files only. Every folder is checked before it is returned (see `base.checks`).
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

from tsugiki.annotations import PretrainedConfig
from tsugiki.base.checks import check_folder
from tsugiki.base.gguf import conversion_cache
from tsugiki.base.gguf.file import is_gguf
from tsugiki.base.model_folder import read_shards, weight_files
from tsugiki.base.recommended import RECOMMENDED
from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.io.file_names import (
    ADAPTER_CONFIG_FILE,
    CHAT_TEMPLATES_FOLDER,
    MODEL_CONFIG_FILE,
    MODEL_FILE,
    MODEL_INDEX_FILE,
    OTHER_MODEL_FILES,
)
from tsugiki.io.json import read_json
from tsugiki.io.progress import hidden_progress_bars
from tsugiki.io.shards import Entry
from tsugiki.language import _

EMBEDDED = "embedded"
"""The name of the small Japanese GPT-2 that is part of the package."""
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def settings_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return a folder on this machine with a model's config and tokenizer. It may lack the weights.

    A model that brings Python code of its own is an error without `trust_remote_code`, as is a folder that holds
    something that must not be read (see `check_folder`).
    """
    return _folder(name, trust_remote_code, OTHER_MODEL_FILES)[0]


def model_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return a folder on this machine with all files of a model, which are downloaded if they are on the hub.

    The errors are those of `settings_folder`, and weights that are not safetensors or have a damaged index.
    """
    folder, on_hub = _folder(name, trust_remote_code, OTHER_MODEL_FILES)
    gguf = gguf_path(name) if _is_local(name) else None
    if gguf is not None:
        return conversion_cache.converted_folder(gguf)
    if MODEL_FILE in on_hub:
        _download(name, {MODEL_FILE}, revision=folder.name)
    elif on_hub:
        _download(name, set(weight_files(folder).values()), revision=folder.name)
    if on_hub:
        check_folder(name, folder, trust_remote_code=trust_remote_code)
    return folder


def local_folder(name: str) -> Path | None:
    """Return the folder on this machine that holds a model's files, or None if there is none. Nothing is downloaded.

    The folder of a GGUF file has its config and tokenizer, and may lack the weights (see `model_folder`).
    """
    from huggingface_hub import try_to_load_from_cache

    if name == EMBEDDED:
        return Path(str(files("tsugiki") / "assets" / "base"))
    gguf = gguf_path(name)
    if gguf is not None:
        return conversion_cache.settings_folder(gguf)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repo_id, revision = split_revision(name)
    try:
        cached = try_to_load_from_cache(repo_id, MODEL_CONFIG_FILE, revision=revision)
    except ValueError:  # the name is not a valid hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def gguf_path(name: str) -> Path | None:
    """Return the path of the GGUF file with this name, or None if there is no such file.

    A file counts as GGUF if its name ends in `.gguf` or its content begins as GGUF does.
    """
    path = Path(name).expanduser()
    return path if path.is_file() and (path.suffix.lower() == ".gguf" or is_gguf(path)) else None


def gguf_of_base(base: str | None, given: str | None = None) -> Path:
    """Return a GGUF file of a base: the `given` one, or that of the embedded model, of a GGUF file, or on the hub.

    `given` is a file, or `USER/NAME/FILE` on the hub.

    Raises a TsugikiError if none is known.
    """
    if given is None and base == EMBEDDED:
        return Path(str(files("tsugiki") / "assets" / "base.gguf"))
    on_hub = {row.name: row.gguf for row in RECOMMENDED if row.gguf}
    wanted = given or on_hub.get(base or "", base) or ""
    if (path := gguf_path(wanted)) is not None:
        return path
    user, _slash, rest = wanted.partition("/")
    repository, _slash, file = rest.partition("/")
    if not file.endswith(".gguf") or wanted.startswith(("/", ".", "~")):
        raise TsugikiError(
            "no GGUF file is known for {name}; give one of the base as {flag:base_gguf}, a file or USER/NAME/FILE.gguf "
            "on the hub; where there is none, llama.cpp's convert_hf_to_gguf.py converts what `tsugiki merge` writes",
            name=wanted or _("this base"),
        )
    return _download(f"{user}/{repository}", {file}) / file


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `USER/NAME@REVISION` into the hub id and the revision; None without one, as for every path."""
    repo_id, _mark, revision = name.partition("@")
    if not revision or not _HUB_ID.fullmatch(repo_id) or os.path.exists(Path(name).expanduser()):
        return name, None
    return repo_id, revision


def _folder(name: str, trust_remote_code: bool, patterns: tuple[str, ...]) -> tuple[Path, Collection[str]]:
    """Return the checked folder of a model, and the names of its files on the hub; none for a local model.

    Of a model on the hub, the files whose names match `patterns` are downloaded, and its code if it is trusted.
    """
    if not name.strip():
        raise TsugikiError(
            "the model's name is empty; give {embedded!r}, a folder, a GGUF file or a hub id", embedded=EMBEDDED
        )
    on_hub: Collection[str] = ()
    if _is_local(name):
        folder = local_folder(name)
    else:
        on_hub = _hub_files(name)
        patterns = (*patterns, "*.py") if trust_remote_code else patterns
        wanted = {file for file in on_hub if _is_wanted(file, patterns)}
        folder = _download(name, wanted) if on_hub else local_folder(name)
    assert folder is not None
    check_folder(name, folder, trust_remote_code=trust_remote_code)
    return folder, on_hub


def _is_local(name: str) -> bool:
    """Return whether the name is that of a model on this machine, as opposed to a hub id."""
    if name == EMBEDDED:
        return True
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            if not (path / MODEL_CONFIG_FILE).is_file():
                is_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
                hint = (
                    _("it is an adapter; pass its base as --model and this folder as --adapter")
                    if is_adapter
                    else _("it has no {file}", file=MODEL_CONFIG_FILE)
                )
                raise TsugikiError("{name} is not a model: {reason}", name=name, reason=hint)
            return True
        if gguf_path(name) is not None:
            return True
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise TsugikiError("no model at {name!r}: {error}", name=name, error=error_text(error)) from error
    if exists:
        raise TsugikiError(
            "{name} is a file; a model is a folder with {file}, a GGUF file, or a hub id",
            name=name,
            file=MODEL_CONFIG_FILE,
        )
    if path.suffix.lower() == ".gguf":
        raise TsugikiError("no model at {name!r}: there is no such file", name=name)
    if name.startswith(("/", ".", "~")):
        raise TsugikiError("no model at {name!r}: there is no such folder", name=name)
    if get_close_matches(name.lower(), [EMBEDDED], cutoff=0.8):
        raise TsugikiError("no model called {name!r}; did you mean {embedded!r}?", name=name, embedded=EMBEDDED)
    return False


def _is_wanted(file: str, patterns: Collection[str]) -> bool:
    """Return whether a file of a repository belongs to the model in its root, rather than to another in a subfolder."""
    folder, _mark, own = file.rpartition("/")
    return folder in ("", CHAT_TEMPLATES_FOLDER) and any(fnmatchcase(own, pattern) for pattern in patterns)


def _download(name: str, wanted: Collection[str], revision: str | None = None) -> Path:
    """Download files of a model on the hub, and return the folder of huggingface_hub's cache that they are in.

    A `revision` overrides the one in the name.
    """
    from huggingface_hub import hf_hub_download

    repo_id, named = split_revision(name)
    revision = revision or named
    try:
        # One after the other: after Ctrl-C, the threads of snapshot_download go on until their files are complete.
        for file in sorted(wanted):
            folder = Path(hf_hub_download(repo_id, file, revision=revision)).parents[file.count("/")]
            revision = folder.name  # the commit, so that all files are of the same one
        return folder
    except Exception as error:  # any error of the network, the hub or the disk
        raise TsugikiError("{name} cannot be downloaded: {error}", name=name, error=error_text(error)) from error


def _hub_files(name: str) -> frozenset[str]:
    """Return the paths of a model's files on the hub; none if it cannot be reached but the model is cached.

    A single request decides this, so that the user does not wait for the retries of every file.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo_id, revision = split_revision(name)
    try:
        found = HfApi().model_info(repo_id, revision=revision, timeout=10)
    except GatedRepoError as error:
        raise TsugikiError(
            "{name} requires consent: accept its terms on the hub and log in (hf auth login)", name=name
        ) from error
    except RevisionNotFoundError as error:
        raise TsugikiError("{name} has no revision {revision!r} on the hub", name=repo_id, revision=revision) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise TsugikiError(
            "no model called {name!r}: it is not {embedded!r}, not a folder or a GGUF file, and not on the hub",
            name=name,
            embedded=EMBEDDED,
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        if local_folder(name):
            return frozenset()
        raise TsugikiError(
            "there is no folder {name!r}, the hub cannot be reached and nothing is cached; check the name and "
            "the network",
            name=name,
        ) from error
    names = frozenset(file.rfilename for file in found.siblings or ())
    if MODEL_CONFIG_FILE not in names:
        raise TsugikiError("{name} is not a model: the repository has no {file}", name=name, file=MODEL_CONFIG_FILE)
    return names


def folder_entries(folder: Path) -> dict[str, Entry]:
    """Return the entries of all tensors in a model's folder."""
    return {key: entry for shard in read_shards(folder) for key, entry in shard.entries.items()}


def weight_entries(name: str) -> tuple[Mapping[str, Entry] | None, bool]:
    """Return the entries of a model's tensors (None if the hub cannot be reached), and whether its weights are here.

    The name is that of a folder or a hub id, not of a GGUF file. Of a model on the hub only the index and the headers
    are downloaded, at most about 100 kB of each file.
    """
    assert gguf_path(name) is None
    folder = local_folder(name)
    if folder is not None and (Path(name).expanduser() == folder or _has_weights(folder)):
        return folder_entries(folder), True
    return _hub_entries(name), False


def _has_weights(folder: Path) -> bool:
    """Return whether the weights of a model on the hub have been downloaded."""
    if (folder / MODEL_INDEX_FILE).is_file():
        try:
            return bool(folder_entries(folder))
        except TsugikiError:  # some files may not have been downloaded
            return False
    return (folder / MODEL_FILE).is_file()


def _hub_entries(name: str) -> dict[str, Entry] | None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    repo_id, revision = split_revision(name)
    try:
        with hidden_progress_bars():
            found = HfApi().get_safetensors_metadata(repo_id, revision=revision)
    except NotASafetensorsRepoError as error:
        raise TsugikiError(
            "{folder} has no safetensors weights: neither {file} nor {index} exists",
            folder=name,
            file=MODEL_FILE,
            index=MODEL_INDEX_FILE,
        ) from error
    except (SafetensorsParsingError, HfHubHTTPError, ValueError, AttributeError, TypeError) as error:
        raise TsugikiError(
            "the weights of {name} cannot be read: {error}", name=name, error=error_text(error)
        ) from error
    except (httpx2.HTTPError, OSError):
        return None
    return {
        key: Entry(tensor.dtype, tuple(tensor.shape), *tensor.data_offsets)
        for file in found.files_metadata.values()
        for key, tensor in file.tensors.items()
    }


def load_config(name: str) -> PretrainedConfig:
    """Load a model's config; of a model on the hub, nothing else is downloaded."""
    folder, _on_hub = _folder(name, False, (MODEL_CONFIG_FILE,))
    with loading_errors(name):
        return read_config(folder)


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read the config in a model's folder, without settings that the folder should not decide.

    transformers raises exceptions of any class; see `loading_errors`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    kind = read_json(folder / MODEL_CONFIG_FILE).get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise TsugikiError(
            "{folder} is a model of the type {kind}, which transformers {version} does not know; a newer release may",
            folder=folder,
            kind=error_text(kind, 40),
            version=__version__,
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if config.model_type == "rwkv":
        # In evaluation mode, RWKV would halve the weights of its later layers, and not those of an adapter in them. The
        # rescaling only prevents overflow in float16.
        config.rescale_every = 0
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        # Old configs can switch gradient checkpointing on. It costs time, so only the user may switch it on.
        if part is not None:
            vars(part).pop("gradient_checkpointing", None)
    return config


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn exceptions of other libraries, which may be of any class, into a `TsugikiError` that names the model."""
    try:
        yield
    except TsugikiError:
        raise
    except BaseException as error:
        if not is_ordinary(error):
            raise
        raise TsugikiError(
            "{name} cannot be loaded: {error}", name=name, error=error_text(error) or type(error).__name__
        ) from error
