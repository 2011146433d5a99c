"""An adapter as two files, in the format of Hugging Face PEFT.

    adapter_model.safetensors   what trains, under the names of its form (see `tsugiki.methods`)
    adapter_config.json         `peft_type`, and the settings of the form under PEFT's names
    tsugiki.json                which base it was trained on, and settings that PEFT has none for; it does not read it

What is written here, `PeftModel.from_pretrained` loads, where PEFT has the method; what PEFT writes, `load_adapter`
loads, and gives the same logits. A field of the config that would change the result and is not known here is refused
by name.
"""

import dataclasses
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsugiki.adapters.probe import logit_shift
from tsugiki.base.fingerprint import base_fingerprint
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import files_into
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE
from tsugiki.io.json import read_json, write_json
from tsugiki.lora.graft import DEFAULT_NAME, active_adapter, add_adapter, base_alone, find_adapter
from tsugiki.lora.targets import base_modules
from tsugiki.methods.method import PREFIX
from tsugiki.methods.table import FORMATS, format_of

# Who wrote it, and for what.
_COMMON_FIELDS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)

# What is found under the name of a safetensors file.
_OTHER_FORMATS = {
    b"version https://git-lfs": "it is the pointer of Git LFS; fetch the file itself (git lfs pull)",
    b"PK\x03\x04": "it is a zip archive, as torch.save writes, and no safetensors",
    b"\x80\x02": "it is pickled, and no safetensors",
    b"GGUF": "it is GGUF, and no safetensors",
    b"<!": "it is a page of HTML, and no safetensors",
    b"<html": "it is a page of HTML, and no safetensors",
}


def save_adapter(model: nn.Module, path: str | Path, name: str | None = None) -> None:
    """Write an adapter of `model` (the active one, or the one called `name`) as a PEFT folder.

    Each file appears whole or not at all; files of an adapter that is there already are replaced.

    Raises:
        TsugikiError: nothing is grafted, or the folder cannot be written.
    """
    folder = Path(path)
    adapter = find_adapter(model, name) if name is not None else active_adapter(model)
    form = format_of(adapter.config)
    tensors = {key: t.detach().cpu().contiguous() for key, t in form.tensors(model, adapter).items()}
    base = {"name": getattr(model, "name_or_path", None) or None, "fingerprint": base_fingerprint(model)}
    beside = form.extra_settings(adapter.config) if form.extra_settings is not None else {}
    with files_into(folder, last=ADAPTER_CONFIG_FILE) as part:
        save_file(tensors, part / ADAPTER_FILE, metadata={"format": "pt"})
        write_json(part / ADAPTER_CONFIG_FILE, _common_fields(model, form.peft_type) | form.to_json(model, adapter))
        write_json(part / METADATA_FILE, {"format": 1, "base": base} | ({"adapter": beside} if beside else {}))
        share_weights(part)


def share_weights(folder: Path) -> None:
    """Let whoever may read an adapter's config read its weights; safetensors writes files for their owner alone."""
    shutil.copymode(folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_FILE)


def load_adapter(
    model: nn.Module, path: str | Path, name: str | None = None, *, allow_base_mismatch: bool = False
) -> Any:
    """Graft the adapter stored in the folder `path`, written by Tsugiki or by PEFT, and make it active.

    Every tensor of the file is used, or the load fails and names the rest; the model is then as before. An
    adapter that moves no logit is loaded with a warning.

    Args:
        model: the base that the adapter was trained on.
        path: the folder.
        name: what to call it in this model; "default" where nothing is said.
        allow_base_mismatch: load although the adapter names another base than this one.

    Raises:
        TsugikiError: no adapter there, one of another method or base, or tensors that do not fit.
    """
    folder = Path(path)
    adapter = read_adapter(model, folder, read_adapter_config(folder), allow_base_mismatch=allow_base_mismatch)
    add_adapter(model, adapter, name or DEFAULT_NAME)
    if logit_shift(model) == 0:
        warnings.warn(f"the adapter in {folder} changes nothing: the model's logits are the base's", stacklevel=2)
    return adapter


def read_adapter(model: nn.Module, folder: Path, config: Any, *, allow_base_mismatch: bool = False) -> Any:
    """The adapter stored in a folder, made for `model`, which stays as it is.

    Args:
        model: its base.
        folder: where it is stored.
        config: from `read_adapter_config`, or from `read_peft_config`.
        allow_base_mismatch: as in `load_adapter`.

    Raises:
        TsugikiError: as in `load_adapter`.
    """
    stored = read_weights(folder)
    if not allow_base_mismatch:
        _refuse_another_base(model, folder)
    with base_alone(model):
        try:
            adapter = format_of(config).build_for(model, config, stored.keys())
        except TsugikiError as error:
            # A target that matches nothing is a sign of another base here, not of a slip in the config.
            raise TsugikiError(f"{folder} does not fit this model: {error}") from error
        _fill(model, adapter, stored, folder)
    return adapter


def load_adapter_weights(model: nn.Module, folder: Path) -> None:
    """Put the values stored in `folder` into the active adapter, which must have the same tensors.

    Raises:
        TsugikiError: no weights there, or tensors that do not fit.
    """
    _fill(model, active_adapter(model), read_weights(folder), folder)


def read_adapter_config(folder: Path) -> Any:
    """The settings in the folder's adapter_config.json and tsugiki.json, of the class that its method's form has.

    Raises:
        TsugikiError: no such file, no JSON, a method that is not known here, or a field that is not and would change
            the result.
    """
    config = read_peft_config(folder)
    if format_of(config).extra_settings is None or not (folder / METADATA_FILE).is_file():
        return config
    try:
        return dataclasses.replace(config, **(read_json(folder / METADATA_FILE, missing="").get("adapter") or {}))
    except (TsugikiError, TypeError) as error:
        raise TsugikiError(f"{folder / METADATA_FILE}: {error}") from error


def read_peft_config(folder: Path) -> Any:
    """The settings in adapter_config.json alone: of the file's tensors as PEFT reads them.

    Raises:
        TsugikiError: as for `read_adapter_config`.
    """
    path = folder / ADAPTER_CONFIG_FILE
    fields = read_config_fields(folder)
    form = FORMATS.get(str(fields.get("peft_type")))
    if form is None:
        raise TsugikiError(
            f"{path}: peft_type is {fields.get('peft_type')!r}; those that are loaded here are {', '.join(FORMATS)}"
        )
    try:
        return form.from_json({key: value for key, value in fields.items() if key not in _COMMON_FIELDS})
    except TsugikiError as error:
        raise TsugikiError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Base:
    """The base that an adapter was trained on, as far as its files say."""

    name: str | None
    """As `load_model` takes it."""
    fingerprint: str | None
    """Of its stored weights; PEFT's folders do not say."""


def read_base(folder: Path) -> Base:
    """Which base an adapter was trained on.

    Raises:
        TsugikiError: no adapter there, or a file that is no JSON.
    """
    name = read_config_fields(folder).get("base_model_name_or_path") or None
    said = read_json(folder / METADATA_FILE, missing="").get("base") if (folder / METADATA_FILE).is_file() else None
    return Base(name, said.get("fingerprint") if isinstance(said, dict) else None)


def read_config_fields(folder: Path) -> dict[str, Any]:
    """All fields of adapter_config.json, not yet looked at.

    Raises:
        TsugikiError: no such file, or no JSON object.
    """
    return read_json(folder / ADAPTER_CONFIG_FILE, missing=f"no adapter in {folder}: it has no {ADAPTER_CONFIG_FILE}")


@torch.no_grad()
def _fill(model: nn.Module, adapter: Any, stored: Mapping[str, Tensor], folder: Path) -> None:
    """Copy the stored tensors into the adapter, or say everything that is wrong with them at once."""
    form = format_of(adapter.config)
    wanted = form.tensors(model, adapter)
    problems = [*misfits(model, wanted, stored), *not_finite(stored)]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise TsugikiError(
            f"{folder / ADAPTER_FILE} does not fit this model: {'; '.join(problems[:3])}{more}; "
            "was it trained on another base?"
        )
    if form.load_tensors is not None:
        form.load_tensors(model, adapter, stored)
        return
    for key, tensor in wanted.items():
        tensor.copy_(stored[key])


def misfits(model: nn.Module, wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the names and shapes of stored tensors, for a model that wants these.

    Of a model on the meta device, which has no values, what has the place and shape of a weight of the base passes for
    a copy of it.
    """
    surplus = [key for key in stored if key not in wanted and not _is_copy_of_base(model, key, stored[key])]
    problems = [f"{key} is missing" for key in wanted if key not in stored]
    problems += [f"{key} belongs nowhere" for key in surplus]
    problems += [
        f"{key} is {list(stored[key].shape)}, here {list(wanted[key].shape)}"
        for key in wanted
        if key in stored and stored[key].shape != wanted[key].shape
    ]
    return problems


def not_finite(stored: Mapping[str, Tensor]) -> list[str]:
    """Which of these tensors hold infinities or what is no number."""
    # torch looks at 8-bit floats in no other way
    wide = {key: tensor.float() if tensor.itemsize == 1 else tensor for key, tensor in stored.items()}
    return [f"{key} is not finite" for key, tensor in wide.items() if not torch.isfinite(tensor).all()]


def _is_copy_of_base(model: nn.Module, key: str, tensor: Tensor) -> bool:
    """Whether this is a weight of the base that PEFT stored unchanged, as it does beside a grafted embedding."""
    path, _, attribute = key.removeprefix(PREFIX).replace(".base_layer.", ".").rpartition(".")
    owner = dict(base_modules(model)).get(path)
    base = owner._parameters.get(attribute) if owner is not None else None
    if base is None or base.shape != tensor.shape:
        return False
    return base.is_meta or torch.equal(base.to(tensor.dtype), tensor)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by their names in the file, of which a tensor's bytes are read when it is used.

    Raises:
        TsugikiError: no weights there, or a broken file.
    """
    path = folder / ADAPTER_FILE
    if not path.is_file():
        pickled = path.with_name("adapter_model.bin")
        hint = f"; {pickled.name} is pickled and is not loaded" if pickled.is_file() else ""
        raise TsugikiError(f"no adapter weights: {path} is missing{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TsugikiError(f"{path} is broken: {_mislabelled(path) or error}") from error


def _mislabelled(path: Path) -> str:
    """What this file is instead of safetensors, where its first bytes tell."""
    try:
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError:
        return ""
    return next((what for start, what in _OTHER_FORMATS.items() if begins.lstrip().startswith(start)), "")


def _refuse_another_base(model: nn.Module, folder: Path) -> None:
    base, here = read_base(folder), base_fingerprint(model)
    if base.fingerprint and here and base.fingerprint != here:
        raise TsugikiError(
            f"{folder} was trained on another base ({base.name}) than this one "
            f"({getattr(model, 'name_or_path', '')}): their weights differ; --allow-base-mismatch loads it all the same"
        )


def _common_fields(model: nn.Module, peft_type: str) -> dict[str, Any]:
    return {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM" if hasattr(model, "generate") else None,
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "inference_mode": True,
    }
