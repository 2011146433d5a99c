"""An adapter as a folder, in the format of Hugging Face PEFT.

    adapter_model.safetensors   the trained tensors (their names: `methods.peft_keys`)
    adapter_config.json         `peft_type`, and the method's settings under PEFT's names
    tsugiki.json                the base's fingerprint, settings that PEFT has no field for, and digests of all of this;
                                PEFT does not read it

`PeftModel.from_pretrained` loads what is written here, if PEFT has the method; `load_adapter` loads what PEFT writes.
Both give the same logits. A field of the config that would change the result and is not supported is an error. So is a
file that is not the one that was saved with `tsugiki.json`: a bit of it changed, or another program replaced it.
"""

import dataclasses
import re
import shutil
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsugiki.adapters.metadata import (
    BaseReference,
    Digests,
    Metadata,
    read_metadata,
    settings_digest,
    write_metadata,
)
from tsugiki.adapters.probe import logit_shift
from tsugiki.base.config import loading_errors
from tsugiki.base.context import text_config
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.resolve import local_folder, split_revision
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.atomic import files_into
from tsugiki.io.digests import file_sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE
from tsugiki.io.json import read_json, write_json
from tsugiki.language import _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import (
    DEFAULT_NAME,
    Model,
    active_adapter,
    active_names,
    add_adapter,
    base_alone,
    find_adapter,
    is_merged,
    remove_adapter,
    set_adapter,
)
from tsugiki.lora.names import split_block
from tsugiki.lora.peft_names import renamed_when_loaded
from tsugiki.lora.several import JoinedAdapter
from tsugiki.lora.shared_parameters import shared_parameters
from tsugiki.lora.targets import base_modules, find_target_parameters, find_targets, task_heads, vocabulary_layers
from tsugiki.lora.wrappers import unwrapped, unwrapped_to_graft
from tsugiki.methods.method import MERGE_WITH_PEFT, equal_when_rounded, shape_problems
from tsugiki.methods.peft_keys import base_name, parameter_keys, without_duplicates
from tsugiki.methods.table import FORMATS, format_of

_SHOWN_PROBLEMS = 3
_PART = re.compile(r"adapter_model-(\d{5})-of-(\d{5})\.safetensors")

_COMMON_FIELDS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
"""Fields of adapter_config.json that are the same for all methods."""
_CLASSIFIERS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""End of the name of a model's class -> PEFT's `task_type`."""
_NAMES = _COMMON_FIELDS - {"peft_type"}
"""Those on which the result does not depend."""

_OTHER_FORMATS = {
    b"version https://git-lfs": marked("it is a pointer of Git LFS; fetch the file itself (git lfs pull)"),
    b"PK\x03\x04": marked("it is a zip archive, as torch.save writes, not safetensors"),
    b"\x80\x02": marked("it is a pickle, not safetensors"),
    b"GGUF": marked("it is a GGUF file, not safetensors"),
    b"<!": marked("it is an HTML page, not safetensors"),
    b"<html": marked("it is an HTML page, not safetensors"),
}
"""First bytes of files that are mistaken for safetensors -> what they are."""


def save_adapter(model: nn.Module, path: str | Path, name: str | None = None) -> None:
    """Write an adapter of a grafted model to a folder that Tsugiki and PEFT can load.

    Each file appears complete or not at all. Files of an adapter that is already in the folder are replaced.

    Args:
        model: the grafted model.
        path: the folder; created if it does not exist.
        name: the adapter's name in the model; None for the active adapter.

    Raises:
        TsugikiError: the model has no such adapter, a tensor of it is not finite, or the folder cannot be written.
    """
    model = unwrapped(model)
    write_adapter(model, find_adapter(model, name) if name is not None else active_adapter(model), Path(path))


def write_adapter(model: nn.Module, adapter: Any, folder: Path) -> None:
    """Write an adapter to a folder, as `save_adapter` does.

    Args:
        model: the grafted model.
        adapter: one of its adapters, or a copy of it.
        folder: created if it does not exist.

    Raises:
        TsugikiError: a tensor of the adapter is not finite, or the folder cannot be written.
    """
    if isinstance(adapter, JoinedAdapter):
        raise TsugikiError(_("several adapters are active; pass the name of the one to save, or combine their folders"))
    adapter_format = format_of(adapter.config)
    tensors = adapter_format.tensors(model, adapter) | _resized_vocabulary(model, adapter)
    fields = _config_fields(model, adapter)
    _warn_of_names(model, adapter)
    broken = not_finite(tensors)
    if broken:
        raise TsugikiError(
            _("the adapter is not saved, because {broken}; the training has diverged").format(
                broken=summarise_list(broken)
            )
        )
    extra_settings = adapter_format.extra_settings
    with nullcontext() if is_merged(model) else base_alone(model):
        base = BaseReference(name=getattr(model, "name_or_path", None) or None, **dict(identity_of(model)))
    metadata = Metadata(
        base=base,
        method_config=extra_settings(adapter.config) if extra_settings is not None else {},
    )
    with files_into(folder, last=ADAPTER_CONFIG_FILE) as temporary:
        write_adapter_files(temporary, tensors, fields, metadata)


def check_can_save(model: nn.Module) -> None:
    """Raise a TsugikiError if the active adapter could not be written, or its config would select other layers.

    A run calls it before its first step, so that nothing is lost after the last one.
    """
    adapter = active_adapter(model)
    fields = _config_fields(model, adapter)
    _resized_vocabulary(model, adapter)
    if not isinstance(adapter.config, LoraConfig):
        return
    _warn_of_names(model, adapter)
    written = format_of(adapter.config).from_json(
        {name: value for name, value in fields.items() if name not in _COMMON_FIELDS}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranks, which were warned of when the layers were grafted
        selected = {*find_targets(model, written), *find_target_parameters(model, written)}
        layers = {*adapter.pairs, *adapter.parameter_pairs}
    if selected != layers:
        raise TsugikiError(
            _(
                "this adapter cannot be saved: target_modules={target_modules} would select other layers than "
                "those that were grafted, such as {selected}; choose other target_modules"
            ).format(target_modules=written.target_modules, selected=min(selected ^ layers))
        )


def _resized_vocabulary(model: nn.Module, adapter: Any) -> dict[str, Tensor]:
    """Return the weights of the embedding and the head if they have another number of rows than in the base's files.

    Raises:
        TsugikiError: they have, and the file of this method has no place for them, or they are quantised.
    """
    before = _words_in_files(model)
    if before is None or text_config(model).vocab_size == before:
        return {}
    rows = text_config(model).vocab_size
    resized = _("the vocabulary of {name} was resized from {before} to {rows}").format(
        name=model.name_or_path, before=before, rows=rows
    )
    if not isinstance(adapter.config, LoraConfig):
        raise TsugikiError(
            _(
                "{resized}, which only the file of a LoRA adapter can hold; save the resized model before you "
                "graft (model.save_pretrained), and train on what was saved"
            ).format(resized=resized)
        )
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for path, layer in vocabulary_layers(model).items():
        name, weight = f"{path}.weight", layer._parameters.get("weight")
        if weight is None or not weight.is_floating_point():
            raise TsugikiError(
                _("{resized}, and {path} is quantised, so it cannot be saved; load the base unquantised").format(
                    resized=resized, path=path
                )
            )
        if path in adapter.tokens and set(adapter.tokens[path].indices.tolist()) >= set(range(before, rows)):
            continue  # all new words have trained vectors
        if path not in adapter.modules and name not in adapter.parameters and id(weight) not in stored:
            tensors[parameter_keys(name)[path in adapter.pairs]] = weight
            stored.add(id(weight))  # a weight that both share is stored once
    return tensors


def _words_in_files(model: nn.Module) -> int | None:
    """Return the size of the vocabulary by the files of the base; None if they are not on this machine."""
    config: Any = getattr(model, "config", None)
    name = getattr(model, "name_or_path", "")
    folder = local_folder(name) if name else None
    if folder is None or not hasattr(config, "get_text_config"):
        return None
    with loading_errors(name):
        # Its class reads the config of a model with code of its own, too, and runs none of the code.
        in_files = type(config).from_pretrained(folder, local_files_only=True).get_text_config()
    words: int | None = getattr(in_files, "vocab_size", None)
    return words


def _warn_of_names(model: nn.Module, adapter: Any) -> None:
    renamed = renamed_when_loaded(model, adapter.pairs) if isinstance(adapter.config, LoraConfig) else []
    if renamed:
        warnings.warn(
            _(
                "PEFT renames {example} ({count} such) while it loads an adapter of this model, and drops what it "
                "has learned; only Tsugiki reads this adapter as it is"
            ).format(example=renamed[0], count=len(renamed)),
            stacklevel=3,
        )


def _config_fields(model: nn.Module, adapter: Any) -> dict[str, Any]:
    """Return the fields of adapter_config.json but for the base's name."""
    adapter_format = format_of(adapter.config)
    fields = adapter_format.to_json(model, adapter)
    return {"peft_type": adapter_format.peft_type, "task_type": task_type_of(model, adapter), **fields}


def task_type_of(model: nn.Module, adapter: Any) -> str | None:
    """Return the `task_type` by which PEFT chooses its class of model: AutoPeft classes and soft prompts depend on it.

    None for a model that its class would not call rightly: one that takes no token ids, such as Whisper, and a
    classifier whose output layers are not in the file, where its class expects them.
    """
    if getattr(model, "main_input_name", "") != "input_ids":
        return None
    name = type(model).__name__
    task = next((task for ending, task in _CLASSIFIERS.items() if name.endswith(ending)), None)
    if task is not None:
        return task if set(task_heads(model)) <= getattr(adapter, "modules", {}).keys() else None
    if hasattr(model, "generate"):
        return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"
    return "FEATURE_EXTRACTION" if getattr(model, "base_model", None) is model else None


def write_adapter_files(
    folder: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any], metadata: Metadata
) -> None:
    """Write the three files of an adapter into a folder that exists.

    Args:
        folder: usually a temporary one (see `io.atomic`).
        tensors: the trained tensors by their names in the file.
        fields: the fields of adapter_config.json but for the base's name.
        metadata: the content of tsugiki.json, to which the digests are added.

    Raises:
        TsugikiError: a file cannot be written.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    name, revision = split_revision(metadata.base.name or "")
    common = {"base_model_name_or_path": name or None, "revision": revision, "inference_mode": True}
    write_json(folder / ADAPTER_CONFIG_FILE, {**common, **fields})
    # Read again, because what is written may differ: lone surrogates become question marks.
    write_metadata(folder, with_digests(metadata, folder / ADAPTER_FILE, read_config_fields(folder)))
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / ADAPTER_CONFIG_FILE, folder / ADAPTER_FILE)


def with_digests(metadata: Metadata, weights: Path, fields: Mapping[str, Any]) -> Metadata:
    """Return the metadata with the digests of a file of weights and of the fields of adapter_config.json."""
    digests = Digests(weights=file_sha256(weights), settings=settings_digest(_computing_fields(fields), metadata))
    return metadata.model_copy(update={"digests": digests})


def load_adapter(
    model: Model, path: str | Path, name: str | None = None, *, allow_base_mismatch: bool = False
) -> Model:
    """Graft the adapter in a folder, written by Tsugiki or by PEFT, into a model and make it active.

    Every tensor in the file must be used: otherwise the load fails, names the tensors, and leaves the model unchanged.
    An adapter that does not change any logit is loaded with a warning.

    Args:
        model: the base that the adapter was trained on.
        path: the adapter's folder.
        name: the adapter's name in the model; "default" if None.
        allow_base_mismatch: load the adapter although it was trained on another base.

    Returns:
        The same model. `active_adapter(model)` is the adapter.

    Raises:
        TsugikiError: the folder holds no adapter, its method is not supported, it was trained on another base, its
            tensors do not fit, or the model is wrapped (see `lora.wrappers`).
    """
    base, folder, called = unwrapped_to_graft(model), Path(path), name or DEFAULT_NAME
    adapter = read_adapter(base, folder, read_adapter_config(folder), allow_base_mismatch=allow_base_mismatch)
    active_before = active_names(base)
    add_adapter(base, adapter, called)
    try:
        shift = logit_shift(base)
    except BaseException:
        remove_adapter(base, called)
        if active_before:
            set_adapter(base, active_before)
        raise
    if shift == 0:
        warnings.warn(
            _("the adapter in {folder} has no effect: the model's logits are those of the base").format(folder=folder),
            stacklevel=2,
        )
    if not allow_base_mismatch:
        _warn_of_another_name(base, folder)
    return model


def read_adapter(model: nn.Module, folder: Path, config: Any, *, allow_base_mismatch: bool = False) -> Any:
    """Read the adapter in a folder for use in `model`, without changing the model.

    Args:
        model: the base.
        folder: the adapter's folder.
        config: the result of `read_adapter_config`, or of `read_peft_config` to read the tensors as PEFT does.
        allow_base_mismatch: as in `load_adapter`.

    Returns:
        The adapter, which is not grafted.

    Raises:
        TsugikiError: as for `load_adapter`.
    """
    tensors = read_weights(folder)
    if not allow_base_mismatch:
        refuse_another_base(model, folder)
    with base_alone(model):
        try:
            adapter = format_of(config).build_for(model, config, tensors)
        except TsugikiError as error:
            # A target that matches nothing is a sign of another base here, not of a mistake in the config.
            raise TsugikiError(
                _("{folder} does not fit this model: {blocks}{error}").format(
                    folder=folder, blocks=_blocks(model, tensors), error=error
                )
            ) from error
        load_tensors(model, adapter, tensors, str(folder / ADAPTER_FILE))
    return adapter


def load_adapter_weights(model: nn.Module, folder: Path) -> None:
    """Copy the tensors in `folder` into the active adapter, which must have the same tensors.

    Raises:
        TsugikiError: the folder holds no weights, or they do not fit.
    """
    load_tensors(model, active_adapter(model), read_weights(folder), str(folder / ADAPTER_FILE))


@torch.no_grad()
def load_tensors(model: nn.Module, adapter: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of a file into an adapter.

    Args:
        model: the base, or the model that is grafted with the adapter.
        adapter: must have the same tensors.
        tensors: by their names in the file.
        source: the file, for the message.

    Raises:
        TsugikiError: the tensors do not fit; the message lists all problems.
    """
    adapter_format = format_of(adapter.config)
    expected = adapter_format.tensors(model, adapter)
    problems = [*misfits(model, expected, tensors), *not_finite(tensors)]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        rest = _(" (and {more} more)").format(more=more) if more > 0 else ""
        shown = _blocks(model, tensors) + "; ".join(problems[:_SHOWN_PROBLEMS]) + rest
        raise TsugikiError(
            _("{source} does not fit this model: {shown}; was it trained on another base?").format(
                source=source, shown=shown
            )
        )
    if adapter_format.load_tensors is not None:
        adapter_format.load_tensors(model, adapter, tensors)
        return
    for key, tensor in expected.items():
        tensor.copy_(tensors[key])


def read_adapter_config(folder: Path) -> Any:
    """Read the settings of an adapter from its adapter_config.json and tsugiki.json.

    Returns:
        An instance of the config class of the adapter's method.

    Raises:
        TsugikiError: a file is missing or not JSON, the files do not belong together, the method is not supported, or a
            field would change the result and is not supported.
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
            _("{path}: method_config: {error}").format(path=folder / METADATA_FILE, error=error_text(error))
        ) from error
    if extra_settings(complete) != extra:
        raise TsugikiError(
            _("{path}: method_config has other settings than those that Tsugiki writes").format(
                path=folder / METADATA_FILE
            )
        )
    return complete


def read_peft_config(folder: Path) -> Any:
    """Read the settings in adapter_config.json alone, which describe the file's tensors as PEFT reads them.

    Raises:
        TsugikiError: as for `read_adapter_config`.
    """
    path = folder / ADAPTER_CONFIG_FILE
    fields, metadata = read_config_fields(folder), read_metadata(folder)
    if metadata.digests and metadata.digests.settings != settings_digest(_computing_fields(fields), metadata):
        raise TsugikiError(
            _(
                "{path} and {file} do not belong together: one of them is damaged, or was changed; restore it, or "
                "remove {file}"
            ).format(path=path, file=METADATA_FILE)
        )
    adapter_format = FORMATS.get(str(fields.get("peft_type")))
    if adapter_format is None:
        raise TsugikiError(
            _("{path}: peft_type {kind} is not supported; it must be one of {known}; {hint}").format(
                path=path,
                kind=error_text(repr(fields.get("peft_type")), 40),
                known=", ".join(FORMATS),
                hint=_(MERGE_WITH_PEFT),
            )
        )
    try:
        return adapter_format.from_json({key: value for key, value in fields.items() if key not in _COMMON_FIELDS})
    except (TsugikiError, RecursionError) as error:
        raise TsugikiError(f"{path}: {error_text(error)}") from error


def read_base(folder: Path) -> BaseReference:
    """Read which base an adapter was trained on.

    Raises:
        TsugikiError: the folder holds no adapter, or a file is broken.
    """
    fields = read_config_fields(folder)
    name, revision = fields.get("base_model_name_or_path") or None, fields.get("revision")
    if name and isinstance(revision, str) and revision not in ("", "main"):
        name = f"{name}@{revision}"
    return read_metadata(folder).base.model_copy(update={"name": name})


def read_config_fields(folder: Path) -> dict[str, Any]:
    """Read all fields of adapter_config.json without interpreting them.

    Raises:
        TsugikiError: there is no such file, it does not hold a JSON object, or a name in it is no text.
    """
    path = folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise TsugikiError(
            _("no adapter in {folder}: it has no {file}").format(folder=folder, file=ADAPTER_CONFIG_FILE)
        )
    fields = read_json(path)
    for name in ("base_model_name_or_path", "task_type"):
        if not isinstance(fields.get(name), str | None):
            raise TsugikiError(
                _("{path}: {name} is {value}; it must be a text").format(
                    path=path, name=name, value=error_text(repr(fields[name]), 40)
                )
            )
    return fields


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter by their names in the file, which is compared with its digest in tsugiki.json.

    Raises:
        TsugikiError: there is no file of weights, it is broken, or it is not the one that was saved.
    """
    tensors, digests = map_weights(folder), read_metadata(folder).digests
    if digests is not None and file_sha256(folder / ADAPTER_FILE) != digests.weights:
        raise TsugikiError(
            _(
                "{path} is not the file that was saved with {file}: it is damaged, or was replaced; restore it, or "
                "remove {file}"
            ).format(path=folder / ADAPTER_FILE, file=METADATA_FILE)
        )
    return tensors


def map_weights(folder: Path) -> dict[str, Tensor]:
    """Map the tensors of an adapter into memory, by their names in the file, without reading their values.

    Raises:
        TsugikiError: there is no file of weights, or it is broken.
    """
    tensors: dict[str, Tensor] = {}
    for path in adapter_weight_files(folder):
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise TsugikiError(
                _("{path} is broken: {reason}").format(path=path, reason=_other_format(path) or error)
            ) from error
    return without_duplicates(tensors)


def adapter_weight_files(folder: Path) -> list[Path]:
    """Return the files of an adapter's weights: one, or those into which transformers has split a large adapter.

    Raises:
        TsugikiError: there is none, or some are missing.
    """
    path = folder / ADAPTER_FILE
    if path.is_file():
        return [path]
    parts = {int(found[1]): found for one in folder.glob("adapter_model-*") if (found := _PART.fullmatch(one.name))}
    if parts:
        missing = [number for number in range(1, int(next(iter(parts.values()))[2]) + 1) if number not in parts]
        if missing:
            raise TsugikiError(
                _("{folder} has part of an adapter's weights; part {part} is missing").format(
                    folder=folder, part=missing[0]
                )
            )
        return [folder / parts[number].string for number in sorted(parts)]
    pickled = path.with_name("adapter_model.bin")
    hint = _("; {name} is a pickle, which is not loaded").format(name=pickled.name) if pickled.is_file() else ""
    raise TsugikiError(_("no adapter weights: {path} is missing{hint}").format(path=path, hint=hint))


def _blocks(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return a clause if the last block that a file changes is not the last one of the model."""
    counts: list[dict[str, int]] = [{}, {}]
    for found, names in zip(
        counts, (map(base_name, tensors), (name for name, _layer in base_modules(model))), strict=True
    ):
        for path, index, _inside in map(split_block, names):
            if index is not None:
                found[path] = max(found.get(path, 0), index + 1)
    in_file, here = counts
    differing = [path for path in in_file if here.get(path, in_file[path]) != in_file[path]]
    if not differing:
        return ""
    path = differing[0]
    return _("its last block is {path}.{last}, and that of this model {path}.{here}; ").format(
        path=path, last=in_file[path] - 1, here=here[path] - 1
    )


def misfits(model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List what is wrong with the names, shapes and dtypes of an adapter's tensors.

    PEFT may store weights of the base with an adapter, and a weight that embedding and head share twice; a tensor equal
    to such a weight is not listed. If `model` is on the meta device, a tensor of the right name and shape counts as
    equal.

    Args:
        model: the base.
        expected: the tensors that an adapter of this config has for this model.
        found: the tensors in the file.
    """
    surplus = [key for key in found if key not in expected]
    owners = dict(base_modules(model)) if surplus else {}
    shared = shared_parameters(model) if surplus else {}
    return [
        *shape_problems({key: tensor.shape for key, tensor in expected.items()}, found),
        *(
            _("{name} is not part of the adapter").format(name=key)
            for key in surplus
            if not _is_copy(owners, shared, expected, found, key)
        ),
        *(
            _("{name} holds numbers of the type {dtype}, expected {expected}").format(
                name=key, dtype=found[key].dtype, expected=tensor.dtype
            )
            for key, tensor in expected.items()
            if key in found and _kind(found[key]) != _kind(tensor)
        ),
    ]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that hold infinities or NaN, a sentence each."""
    # `torch.isfinite` does not support 8-bit floating-point numbers.
    comparable = {key: tensor.float() if tensor.itemsize == 1 else tensor for key, tensor in tensors.items()}
    return [
        _("{name} is not finite").format(name=key)
        for key, tensor in comparable.items()
        if not torch.isfinite(tensor).all()
    ]


def _computing_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of adapter_config.json on which the result depends."""
    return {name: value for name, value in fields.items() if name not in _NAMES}


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _is_copy(
    owners: Mapping[str, nn.Module],
    shared: Mapping[str, list[str]],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    key: str,
) -> bool:
    """Return whether a tensor of a file is a weight of the base, or one of the adapter under another of its names.

    Args:
        owners: the modules of the base, by name.
        shared: the names of its shared parameters.
        expected: the tensors of the adapter.
        found: the tensors of the file.
        key: the name of one of them.
    """
    name, tensor = base_name(key), found[key]
    path, _dot, attribute = name.rpartition(".")
    owner = owners.get(path)
    weight = owner._parameters.get(attribute) if owner is not None else None
    if weight is None or weight.shape != tensor.shape:
        return False
    if weight.is_meta or equal_when_rounded(weight, tensor):
        return True
    others = {other for one in shared.get(name, ()) for other in parameter_keys(one)}
    return any(torch.equal(found[other], tensor) for other in others & expected.keys() & found.keys())


def _other_format(path: Path) -> str:
    """Tell from its first bytes what a file is instead of safetensors; empty if that is unknown."""
    try:
        with path.open("rb") as file:
            first_bytes = file.read(64)
    except OSError:
        return ""
    found = next((what for start, what in _OTHER_FORMATS.items() if first_bytes.lstrip().startswith(start)), None)
    return _(found) if found else ""


def _warn_of_another_name(model: nn.Module, folder: Path) -> None:
    """Warn if it is unknown whether the adapter was trained on this base, and their names differ."""
    base, name = read_base(folder), getattr(model, "name_or_path", "")
    if base.fingerprint and identity_of(model).fingerprint:
        return
    names = [Path(split_revision(one)[0]).name.lower() for one in (base.name or "", name)]
    if all(names) and names[0] != names[1]:
        warnings.warn(
            _(
                "the adapter in {folder} was trained on {trained}, and this model is {here}; whether their weights "
                "are the same is unknown"
            ).format(folder=folder, trained=base.name, here=name),
            stacklevel=3,
        )


def refuse_another_base(model: nn.Module, folder: Path) -> None:
    """Raise a TsugikiError if the adapter in `folder` was trained on another base than `model`."""
    base = read_base(folder)
    with base_alone(model):
        why = why_different(base, identity_of(model)) or _other_revision(base, getattr(model, "name_or_path", ""))
    if why:
        raise TsugikiError(
            _(
                "{folder} was trained on another base ({trained}) than this one ({here}): {why}; "
                "--allow-base-mismatch loads it anyway"
            ).format(folder=folder, trained=base.name, here=getattr(model, "name_or_path", ""), why=why)
        )


def _other_revision(base: BaseReference, name: str) -> str:
    """Return a clause if an adapter names another revision of the model on the hub, and the digest is unknown."""
    repo_id, revision = split_revision(base.name or "")
    other_id, other = split_revision(name)
    if base.fingerprint or not revision or repo_id != other_id or revision == other:
        return ""
    return _("it was trained on the revision {revision}; pass {name} as the model").format(
        revision=revision, name=base.name
    )
