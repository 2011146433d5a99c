"""Read and write the files in an adapter's folder (see `adapters.format`)."""

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tsugiki.adapters.metadata import BaseReference, Digests, Metadata, read_metadata, settings_digest, write_metadata
from tsugiki.base.resolve import split_revision
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.digests import file_sha256, sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE
from tsugiki.io.json import read_json, write_json
from tsugiki.language import _, marked
from tsugiki.methods.method import MERGE_WITH_PEFT
from tsugiki.methods.peft_keys import without_duplicates
from tsugiki.methods.table import format_of, formats

_PART = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")
_WRITERS = frozenset(
    {
        *("peft_version", "transformers_version", "unsloth_version", "unsloth_fixed"),
        *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),  # ms-swift's, of the training
    }
)
"""Fields that name the programs that wrote a file, or that only they read; PEFT ignores them."""
_COMMON_FIELDS = _WRITERS | {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
}
"""Fields of adapter_config.json that are the same for all methods."""
_PICKLE = "adapter_model.bin"  # of PEFT before 0.7
_NAMES = _COMMON_FIELDS - {"peft_type"}
"""The common fields on which the result of an adapter does not depend."""
_OTHER_FORMATS = {
    b"version https://git-lfs": marked("it is a pointer of Git LFS; fetch the file itself (git lfs pull)"),
    b"PK\x03\x04": marked("it is a zip archive, as torch.save writes, not safetensors"),
    b"\x80\x02": marked("it is a pickle, not safetensors"),
    b"GGUF": marked("it is a GGUF file, not safetensors"),
    b"<!": marked("it is an HTML page, not safetensors"),
    b"<html": marked("it is an HTML page, not safetensors"),
}
"""First bytes of files that are mistaken for safetensors -> the reason in messages."""


def read_adapter_config(folder: Path) -> Any:
    """Read the settings of an adapter from its two JSON files, as an instance of its method's config class.

    A field that would change the result and is not supported is an error, and so are files that do not belong together.
    """
    config = read_peft_config(folder)
    extra = dict(read_metadata(folder).method_config)
    extra_settings = format_of(config).extra_settings
    if extra_settings is None or not extra:
        return config
    try:
        complete = dataclasses.replace(config, **extra)
    except (TsugikiError, TypeError, ValueError) as error:
        raise TsugikiError(
            "{path}: method_config: {error}", path=folder / METADATA_FILE, error=error_text(error)
        ) from error
    if extra_settings(complete) != extra:
        raise TsugikiError(
            "{path}: method_config has other settings than those that Tsugiki writes", path=folder / METADATA_FILE
        )
    return complete


def read_peft_config(folder: Path) -> Any:
    """Read the settings in adapter_config.json alone, which describe the file's tensors as PEFT reads them."""
    path = folder / ADAPTER_CONFIG_FILE
    fields, metadata = read_config_fields(folder), read_metadata(folder)
    if metadata.digests and metadata.digests.settings != settings_digest(_computing_fields(fields), metadata):
        raise TsugikiError(
            "{path} and {file} do not belong together: one of them is damaged, or was changed; restore it, or "
            "remove {file}",
            path=path,
            file=METADATA_FILE,
        )
    adapter_format = formats().get(str(fields.get("peft_type")))
    if adapter_format is None:
        message = _("{path}: peft_type {kind} is not supported; it must be one of {known}; {hint}")
        kind, known = error_text(repr(fields.get("peft_type")), 40), ", ".join(formats())
        raise TsugikiError(message.format(path=path, kind=kind, known=known, hint=_(MERGE_WITH_PEFT)))
    try:
        return adapter_format.from_json({key: value for key, value in fields.items() if key not in _COMMON_FIELDS})
    except (TsugikiError, RecursionError) as error:
        raise TsugikiError(f"{path}: {error_text(error)}") from error


def read_base(folder: Path) -> BaseReference:
    """Read the name and the identity of the base that an adapter was trained on."""
    fields = read_config_fields(folder)
    name, revision = fields.get("base_model_name_or_path") or None, fields.get("revision")
    if name and isinstance(revision, str) and revision not in ("", "main"):
        name = f"{name}@{revision}"
    return read_metadata(folder).base.model_copy(update={"name": name})


def named_base(folder: Path) -> str | None:
    """Return the name of the base that an adapter names; None if it names none.

    The name can be a relative path. If there is nothing at this path, it is resolved from the working directory of the
    run that trained the adapter, which is in the run's record. The folder may be that of a run or of one of its
    checkpoints.
    """
    name = read_base(folder).name
    if name is None or _exists(Path(name).expanduser()):
        return name
    for place in (folder, folder.absolute().parent.parent):  # a checkpoint is in the folder `checkpoints` of its run
        try:
            started = read_json(place / RECORD_FILE).get("working_directory")
        except TsugikiError:  # an adapter needs no record
            continue
        if isinstance(started, str) and _exists(Path(started) / name):
            return str(Path(started) / name)
    return name


def read_config_fields(folder: Path) -> dict[str, Any]:
    """Read all fields of adapter_config.json without interpreting them."""
    path = folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise TsugikiError(
            "no adapter in {folder}: it has no {file}{hint}",
            folder=folder,
            file=ADAPTER_CONFIG_FILE,
            hint=pickle_hint(folder),
        )
    fields = read_json(path)
    for name in ("base_model_name_or_path", "task_type"):
        if not isinstance(fields.get(name), str | None):
            raise TsugikiError(
                "{path}: {name} is {value}; it must be a text",
                path=path,
                name=name,
                value=error_text(repr(fields[name]), 40),
            )
    return fields


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter by their names in the file, which is compared with its digest in tsugiki.json."""
    tensors, digests = map_weights(folder), read_metadata(folder).digests
    if digests is not None and file_sha256(folder / ADAPTER_FILE) != digests.weights:
        raise TsugikiError(
            "{path} is not the file that was saved with {file}: it is damaged, or was replaced; restore it, or "
            "remove {file}",
            path=folder / ADAPTER_FILE,
            file=METADATA_FILE,
        )
    return tensors


def map_weights(folder: Path) -> dict[str, Tensor]:
    """Map the tensors of an adapter into memory, by their names in the file, without reading their values."""
    tensors: dict[str, Tensor] = {}
    for path in adapter_weight_files(folder):
        tensors |= _map_tensors(path)
    return without_duplicates(tensors)


def _map_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory, by their names."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TsugikiError("{path} is broken: {reason}", path=path, reason=_other_format(path) or error) from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that hold infinities or NaN, a clause for each."""
    # `torch.isfinite` does not support 8-bit floating-point numbers.
    comparable = {key: tensor.float() if tensor.itemsize == 1 else tensor for key, tensor in tensors.items()}
    return [
        _("{name} is not finite", name=key) for key, tensor in comparable.items() if not torch.isfinite(tensor).all()
    ]


def adapter_weight_files(folder: Path) -> list[Path]:
    """Return the files of an adapter's weights: one file, or the parts into which transformers split a large one."""
    path = folder / ADAPTER_FILE
    if path.is_file():
        return [path]
    parts = {int(match[1]): match for file in folder.glob("adapter_model-*") if (match := _PART.fullmatch(file.name))}
    if parts:
        missing = [number for number in range(1, int(next(iter(parts.values()))[2]) + 1) if number not in parts]
        if missing:
            raise TsugikiError(
                "{folder} has part of an adapter's weights; part {part} is missing", folder=folder, part=missing[0]
            )
        return [folder / parts[number].string for number in sorted(parts)]
    raise TsugikiError("no adapter weights: {path} is missing{hint}", path=path, hint=pickle_hint(folder))


def pickle_hint(folder: Path) -> str:
    """Return the end of a message: what to do about weights in a pickle; empty if the folder has none."""
    message = _("; its {name} is a pickle, which can run code, so it is not loaded; save the adapter with a new PEFT")
    return message.format(name=_PICKLE) if (folder / _PICKLE).is_file() else ""


def write_adapter_files(
    folder: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any], metadata: Metadata
) -> None:
    """Write the three files of an adapter into a folder that exists, usually a temporary one (see `io.atomic`).

    `fields` are those of adapter_config.json except the base's name; `metadata` gets the digests.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    name, revision = split_revision(metadata.base.name or "")
    common = {"base_model_name_or_path": name or None, "revision": revision, "inference_mode": True}
    write_json(folder / ADAPTER_CONFIG_FILE, {**common, **fields})
    # The fields are read again, because the file may differ from them: lone surrogates become question marks.
    write_metadata(folder, with_digests(metadata, folder / ADAPTER_FILE, read_config_fields(folder)))
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_FILE)


def with_digests(metadata: Metadata, weights: Path, fields: Mapping[str, Any]) -> Metadata:
    """Return the metadata with the digests of a file of weights and of the fields of adapter_config.json."""
    digests = Digests(weights=file_sha256(weights), settings=settings_digest(_computing_fields(fields), metadata))
    return metadata.model_copy(update={"digests": digests})


def content_digest(folder: Path) -> str:
    """Return the SHA-256 of everything on which the result of an adapter depends: its weights and settings."""
    weights = [file_sha256(path) for path in adapter_weight_files(folder)]
    settings = settings_digest(_computing_fields(read_config_fields(folder)), read_metadata(folder))
    return sha256(part.encode() for part in (*weights, settings))


def _computing_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of adapter_config.json on which the result depends."""
    return {name: value for name, value in fields.items() if name not in _NAMES}


def _other_format(path: Path) -> str:
    """Return what a file is instead of safetensors, by its first bytes; empty if that is unknown."""
    try:
        with path.open("rb") as file:
            first_bytes = file.read(64)
    except OSError:
        return ""
    found = next((what for start, what in _OTHER_FORMATS.items() if first_bytes.lstrip().startswith(start)), None)
    return _(found) if found else ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a null character
        return False
