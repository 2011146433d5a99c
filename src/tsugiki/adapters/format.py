"""Save and load an adapter as a folder, in the format of Hugging Face PEFT.

    adapter_model.safetensors   the trained tensors (their names: `methods.peft_keys`)
    adapter_config.json         `peft_type`, and the method's settings under PEFT's names
    tsugiki.json                the base's fingerprint, settings that PEFT has no field for, and digests of all of this;
                                PEFT does not read it

`PeftModel.from_pretrained` loads the folder, if PEFT has the method; `load_adapter` loads folders that PEFT has
written. Both give the same logits. It is an error if the config has a field that would change the result and is not
supported, or if a file is not the one that was saved with `tsugiki.json`, because it is damaged or was replaced.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.files import (
    not_finite,
    read_base,
    read_weights,
    write_adapter_files,
)
from tsugiki.adapters.metadata import BaseReference, Metadata, read_metadata
from tsugiki.adapters.verify import differing_blocks, misfits
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.resolve import loading_errors, local_folder, split_revision
from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.io.atomic import files_into
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.language import _, sentences
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import DEFAULT_NAME, WORDS_BEFORE, trainable_parameters
from tsugiki.lora.hold import (
    active_adapter,
    active_names,
    base_alone,
    find_adapter,
    is_merged,
)
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.peft_keys import parameter_keys, refuse_wrapped
from tsugiki.methods.table import format_of
from tsugiki.model.context import text_config
from tsugiki.model.freeze import in_memory, is_offloaded
from tsugiki.model.names import renamed_when_loaded
from tsugiki.model.ungrafted import task_heads, unwrapped, vocabulary_layers

_SHOWN_PROBLEMS = 3

_CLASSIFIERS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""End of the name of a model's class -> PEFT's `task_type`."""


def save_adapter(model: nn.Module, path: str | Path, name: str | None = None) -> None:
    """Write an adapter of a grafted model to a folder that Tsugiki and PEFT can load.

    Each file appears complete or not at all. Files of an adapter that is already in the folder are replaced.

    Args:
        model: the grafted model.
        path: the folder; created if it does not exist.
        name: the adapter's name in the model; None: the active adapter. If several are active, each is written to a
            subfolder with its name, and "default" to the folder itself, as in PEFT.

    Raises:
        TsugikiError: the model has no such adapter, a tensor of it is not finite, or the folder cannot be written.
    """
    model = unwrapped(model)
    for called, folder in folders_of_active(model, Path(path)).items() if name is None else [(name, Path(path))]:
        write_adapter(model, find_adapter(model, called), folder)


def folders_of_active(model: nn.Module, folder: Path) -> dict[str, Path]:
    """Return the folder of each active adapter by name, in a folder for all of them (see `save_adapter`)."""
    active_adapter(model)  # an error if there is none
    names = active_names(model)
    return {name: folder if len(names) == 1 or name == DEFAULT_NAME else folder / name for name in names}


def write_adapter(model: nn.Module, adapter: Any, folder: Path) -> None:
    """Write an adapter of a grafted model, or a copy of it, to a folder, as `save_adapter` does."""
    adapter_format = format_of(adapter.config)
    trained = (module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False)))
    with in_memory([*getattr(adapter, "pairs", {}).values(), *trained]):
        tensors = adapter_format.tensors(model, adapter) | _resized_vocabulary(model, adapter)
    fields = _config_fields(adapter_format, model, adapter)
    _warn_of_names(model, adapter)
    broken = not_finite(tensors)
    if broken:
        raise TsugikiError(
            "the adapter is not saved, because {broken}; the training has diverged", broken=summarise_list(broken)
        )
    extra_settings = adapter_format.extra_settings
    attached = is_merged(model) or is_offloaded(model)
    with nullcontext() if attached else base_alone(model):
        base = BaseReference(name=getattr(model, "name_or_path", None) or None, **dict(identity_of(model)))
        of_base = [name.replace(".base_layer.", ".") for name in ([] if attached else trainable_parameters(model))]
    not_saved = [name for name in of_base if tensors.keys().isdisjoint(parameter_keys(name))]
    if not_saved:
        message = _(
            "{name} trains as well ({count} such), but belongs to the base and is not saved with the adapter; name its "
            "module in modules_to_save instead of setting requires_grad",
            name=not_saved[0],
            count=len(not_saved),
        )
        warn_caller(message)
    metadata = Metadata(base=base, method_config=extra_settings(adapter.config) if extra_settings is not None else {})
    with files_into(folder, last=ADAPTER_CONFIG_FILE) as temporary:
        write_adapter_files(temporary, tensors, fields, metadata)


def check_can_save(model: nn.Module) -> None:
    """Raise a TsugikiError if the active adapter could not be written.

    A run calls it before its first step, so that nothing is lost after the last one.
    """
    adapter = active_adapter(model)
    _config_fields(format_of(adapter.config), model, adapter)
    _resized_vocabulary(model, adapter)
    _warn_of_names(model, adapter)


def _resized_vocabulary(model: nn.Module, adapter: Any) -> dict[str, Tensor]:
    """Return the weights of embedding and head by their names in the file if the vocabulary was resized, or nothing.

    It was resized if its size differs from that in the base's files.
    """
    before = _words_in_files(model)
    if before is None or text_config(model).vocab_size == before:
        return {}
    rows = text_config(model).vocab_size
    resized = _(
        "the vocabulary of {name} was resized from {before} to {rows}",
        name=model.name_or_path,
        before=before,
        rows=rows,
    )
    if not isinstance(adapter.config, LoraConfig):
        raise TsugikiError(
            "{resized}, which only the file of a LoRA adapter can hold; save the resized model before you "
            "graft (model.save_pretrained), and train on what was saved",
            resized=resized,
        )
    tensors: dict[str, Tensor] = {}
    stored: set[int] = set()
    for path, layer in vocabulary_layers(model).items():
        name, weight = f"{path}.weight", layer._parameters.get("weight")
        if weight is None or not weight.is_floating_point():
            raise TsugikiError(
                "{resized}, and {path} is quantised, so it cannot be saved; load the base unquantised",
                resized=resized,
                path=path,
            )
        if path in adapter.tokens and set(adapter.tokens[path].indices.tolist()) >= set(range(before, rows)):
            continue  # all new words have trained vectors
        if path not in adapter.modules and name not in adapter.parameters and id(weight) not in stored:
            tensors[parameter_keys(name)[path in adapter.pairs]] = weight
            stored.add(id(weight))  # a weight that both share is stored once
    return tensors


def _words_in_files(model: nn.Module) -> int | None:
    """Return the size of the vocabulary by the files of the base, or before it was resized; None if it is unknown."""
    config: Any = getattr(model, "config", None)
    name = getattr(model, "name_or_path", "")
    folder = local_folder(name) if name else None
    if folder is None or not hasattr(config, "get_text_config"):
        return getattr(model, WORDS_BEFORE, None)
    with loading_errors(name):
        # The config's class also reads the config of a model that brings Python code, without running the code.
        in_files = type(config).from_pretrained(folder, local_files_only=True).get_text_config()
    words: int | None = getattr(in_files, "vocab_size", None)
    return words


def _warn_of_names(model: nn.Module, adapter: Any) -> None:
    renamed = renamed_when_loaded(model, adapter.pairs) if isinstance(adapter.config, LoraConfig) else []
    if renamed:
        message = _(
            "PEFT renames {example} ({count} such) while it loads an adapter of this model, and drops what it "
            "has learned; only Tsugiki reads this adapter as it is",
            example=renamed[0],
            count=len(renamed),
        )
        warn_caller(message)


def _config_fields(adapter_format: AdapterFormat[Any, Any], model: nn.Module, adapter: Any) -> dict[str, Any]:
    """Return the fields of adapter_config.json except the base's name."""
    fields = adapter_format.to_json(model, adapter)
    return {"peft_type": adapter_format.peft_type, "task_type": task_type_of(model, adapter), **fields}


def task_type_of(model: nn.Module, adapter: Any) -> str | None:
    """Return the `task_type` by which PEFT chooses its class of model: AutoPeft classes and soft prompts depend on it.

    None for a model that PEFT's class for the task could not use: a model that takes no token ids, such as Whisper, a
    model without a head that takes no embeddings, such as CLIP, and a classifier whose output layers are not in the
    file, although PEFT's class expects them.
    """
    if getattr(model, "main_input_name", "") != "input_ids":
        return None
    name = type(model).__name__
    task = next((task for ending, task in _CLASSIFIERS.items() if name.endswith(ending)), None)
    if task is not None:
        return task if set(task_heads(model)) <= getattr(adapter, "modules", {}).keys() else None
    if hasattr(model, "generate"):
        return "SEQ_2_SEQ_LM" if getattr(model.config, "is_encoder_decoder", False) else "CAUSAL_LM"
    is_headless = getattr(model, "base_model", None) is model
    return "FEATURE_EXTRACTION" if is_headless and "inputs_embeds" in signature(model.forward).parameters else None


def read_adapter(model: nn.Module, folder: Path, config: Any, *, allow_base_mismatch: bool = False) -> Any:
    """Read the adapter in a folder for use in `model`, without grafting it or changing the model.

    `config` is the result of `read_adapter_config`, or of `read_peft_config` to read the tensors as PEFT does.
    """
    tensors: Mapping[str, Tensor] = read_weights(folder)
    if not allow_base_mismatch:
        refuse_another_base(model, folder)
    with base_alone(model):
        try:
            refuse_wrapped(model, tensors)
            adapter = format_of(config).build_for(model, config, tensors)
        except TsugikiError as error:
            # A target that matches nothing is a sign of another base here, not of a mistake in the config.
            raise TsugikiError(
                "{folder} does not fit this model: {blocks}{error}",
                folder=folder,
                blocks=differing_blocks(model, tensors),
                error=error,
            ) from error
        load_tensors(model, adapter, tensors, str(folder / ADAPTER_FILE))
    return adapter


def load_adapter_weights(model: nn.Module, folder: Path) -> None:
    """Copy the tensors in `folder` into the active adapter, which must have the same tensors."""
    load_tensors(model, active_adapter(model), read_weights(folder), str(folder / ADAPTER_FILE))


@torch.no_grad()
def load_tensors(model: nn.Module, adapter: Any, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy the tensors of a file, named `source` in messages, into an adapter, which must have the same tensors.

    `model` is the base, or the model that is grafted with the adapter.
    """
    adapter_format = format_of(adapter.config)
    expected = adapter_format.tensors(model, adapter)
    problems = [*misfits(model, expected, tensors), *not_finite(tensors)]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        rest = _(" (and {more} more)", more=more) if more > 0 else ""
        shown = differing_blocks(model, tensors) + sentences(problems[:_SHOWN_PROBLEMS]) + rest
        raise TsugikiError(
            "{source} does not fit this model: {shown}; was it trained on another base?", source=source, shown=shown
        )
    if adapter_format.load_tensors is not None:
        adapter_format.load_tensors(model, adapter, tensors)
        return
    for key, tensor in expected.items():
        tensor.copy_(tensors[key])


def warn_of_unknown_base(model: nn.Module, folder: Path) -> None:
    """Warn if it is unknown whether the adapter was trained on this base, and there is a reason to doubt it.

    The reason is another name, or a fingerprint that Tsugiki would have saved with the adapter if the base's files had
    not changed.
    """
    base, name, fingerprint = read_base(folder), getattr(model, "name_or_path", ""), identity_of(model).fingerprint
    if base.fingerprint and fingerprint:
        return
    names = [Path(split_revision(base_name)[0]).name.lower() for base_name in (base.name or "", name)]
    metadata = read_metadata(folder)
    if all(names) and names[0] != names[1]:
        message = _(
            "the adapter in {folder} was trained on {trained}, and this model is {here}; whether their weights "
            "are the same is unknown",
            folder=folder,
            trained=base.name,
            here=name,
        )
        warn_caller(message)
    elif base.name and fingerprint and metadata.digests and not metadata.provenance:
        message = _(
            "the adapter in {folder} was saved without the fingerprint of {trained}, whose files had changed; "
            "whether it was trained on the weights of this model is unknown",
            folder=folder,
            trained=base.name,
        )
        warn_caller(message)


def refuse_another_base(model: nn.Module, folder: Path) -> None:
    """Raise a TsugikiError if the adapter in `folder` was trained on another base than `model`."""
    base = read_base(folder)
    with base_alone(model):
        why = why_different(base, identity_of(model)) or _other_revision(base, getattr(model, "name_or_path", ""))
    if why:
        raise TsugikiError(
            "{folder} was trained on another base ({trained}) than this one ({here}): {why}; "
            "{flag:allow_base_mismatch} loads it anyway",
            folder=folder,
            trained=base.name,
            here=getattr(model, "name_or_path", ""),
            why=why,
        )


def _other_revision(base: BaseReference, name: str) -> str:
    """Return a clause for a message if an adapter names another revision of the model, and its digest is unknown."""
    repo_id, revision = split_revision(base.name or "")
    other_id, other = split_revision(name)
    if base.fingerprint or not revision or repo_id != other_id or revision == other:
        return ""
    return _("it was trained on the revision {revision}; pass {name} as the model", revision=revision, name=base.name)
