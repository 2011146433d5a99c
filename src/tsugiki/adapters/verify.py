"""Verify an adapter: whether its files are whole, whether they fit a base, and whether it has any effect.

found = read_adapter_files(folder)                   # reads and checks all files once
find_misfits(found, known_base("embedded"))          # why the adapter does not fit this base
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.files import (
    not_finite,
    pickle_hint,
    read_adapter_config,
    read_base,
    read_peft_config,
    read_weights,
)
from tsugiki.adapters.lora_weights import parse_tensors
from tsugiki.adapters.metadata import BaseReference
from tsugiki.base.identity import BaseIdentity, named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, RECORD_FILE
from tsugiki.io.json import read_json
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import disable_adapter
from tsugiki.methods.method import equal_when_rounded, shape_problems
from tsugiki.methods.peft_keys import base_name, parameter_keys, refuse_wrapped
from tsugiki.methods.table import format_of
from tsugiki.model.inference import probe_logits
from tsugiki.model.names import split_block
from tsugiki.model.ungrafted import base_modules
from tsugiki.model.weights import shared_parameters


@dataclass(frozen=True, eq=False)
class AdapterFiles:
    """The content of an adapter's folder; it is complete only if there are no problems."""

    folder: Path
    config: Any = None
    """The settings, an instance of the method's config class."""
    as_peft: Any = None
    """The settings in adapter_config.json alone, which describe the tensors."""
    base: BaseReference = field(default_factory=BaseReference)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    problems: Sequence[str] = ()
    """All problems that do not depend on a base, a clause for each."""


@dataclass(frozen=True)
class KnownBase:
    """A base that adapters are checked against."""

    model: nn.Module
    """A model of its architecture; only names and shapes are used."""
    identity: BaseIdentity


def known_base(name: str) -> KnownBase:
    """Read the architecture and the identity of a base without loading it; its digest is computed from all files."""
    return KnownBase(load_meta_model(name), named_identity(name))


def read_adapter_files(folder: Path) -> AdapterFiles:
    """Read all files of the adapter in a folder and list what is wrong with them.

    The config must be supported, the weights must be safetensors, all values finite; LoRA factors must be complete,
    floating-point and of the ranks that the config gives; tsugiki.json and run.json, if there are any, must be JSON.
    """
    if not (folder / ADAPTER_CONFIG_FILE).is_file():
        problem = _("no adapter: it has no {file}{hint}", file=ADAPTER_CONFIG_FILE, hint=pickle_hint(folder))
        return AdapterFiles(folder, problems=[problem])
    problems: list[str] = []
    found: dict[str, Any] = {}
    with _collecting(problems, folder):
        found["config"] = read_adapter_config(folder)
        found["as_peft"] = read_peft_config(folder)
        found["base"] = read_base(folder)
    with _collecting(problems, folder):
        found["tensors"] = read_weights(folder)
        wrong = _tensor_problems(found["tensors"], found.get("as_peft"))
        problems += [f"{ADAPTER_FILE}: {problem}" for problem in wrong]
    with _collecting(problems, folder):
        if (folder / RECORD_FILE).is_file():
            read_json(folder / RECORD_FILE)
    # A broken tsugiki.json would be listed twice.
    return AdapterFiles(folder, **found, problems=list(dict.fromkeys(problems)))


def check_adapter(folder: Path) -> Any:
    """Check that the adapter in a folder is complete; return its settings, an instance of its method's config class."""
    found = read_adapter_files(folder)
    if found.problems:
        raise TsugikiError(
            "{folder} is not a complete adapter: {problems}", folder=folder, problems=summarise_list(found.problems)
        )
    return found.config


def find_misfits(adapter: AdapterFiles, base: KnownBase) -> list[str]:
    """List the reasons why an adapter without problems does not fit a base; empty if it fits."""
    problems = []
    why = why_different(adapter.base, base.identity)
    if why:
        problems.append(_("it was trained on another base ({name}): {why}", name=adapter.base.name, why=why))
    adapter_format = format_of(adapter.as_peft)
    try:
        refuse_wrapped(base.model, adapter.tensors)
        built = adapter_format.build_for(base.model, adapter.as_peft, adapter.tensors)
        expected = adapter_format.tensors(base.model, built)
    except TsugikiError as error:
        return [*problems, _("it does not fit the base: {error}", error=error)]
    wrong = misfits(base.model, expected, adapter.tensors)
    return [*problems, *(f"{ADAPTER_FILE}: {problem}" for problem in wrong)]


def without_path(message: str, folder: Path) -> str:
    """Remove the path of a folder from a message, for a reader who knows the folder."""
    return message.replace(f"{folder}{os.sep}", "").replace(f" in {folder}", "")


def misfits(model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List the problems with the names, shapes and dtypes of an adapter's tensors, a clause for each.

    `expected` are the tensors that an adapter of this config has for this model. PEFT may store weights of the base
    with an adapter, and a weight that embedding and head share twice; a tensor equal to such a weight is not listed. On
    the meta device, a tensor of the right name and shape counts as equal.
    """
    surplus = [key for key in found if key not in expected]
    owners = dict(base_modules(model)) if surplus else {}
    shared = shared_parameters(model) if surplus else {}
    return [
        *shape_problems({key: tensor.shape for key, tensor in expected.items()}, found),
        *(
            _("{name} is not part of the adapter", name=key)
            for key in surplus
            if not _is_copy(owners, shared, expected, found, key)
        ),
        *(
            _(
                "{name} holds numbers of the type {dtype}, expected {expected}",
                name=key,
                dtype=found[key].dtype,
                expected=tensor.dtype,
            )
            for key, tensor in expected.items()
            if key in found and _kind(found[key]) != _kind(tensor)
        ),
    ]


def differing_blocks(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return a clause for a message if the last block that a file changes is not the model's last block."""
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
    return _(
        "its last block is {path}.{last}, and that of this model {path}.{here}; ",
        path=path,
        last=in_file[path] - 1,
        here=here[path] - 1,
    )


def logit_shift(model: nn.Module) -> float | None:
    """Return the largest change of a logit that the active adapter causes on a fixed input.

    0.0 means that the adapter has no effect; None that the model gives no logits.
    """
    with_adapter = probe_logits(model)
    if with_adapter is None:
        return None
    with disable_adapter(model):
        without = probe_logits(model)
    assert without is not None
    return float((with_adapter - without).abs().max())


@contextmanager
def _collecting(problems: list[str], folder: Path) -> Iterator[None]:
    """Add the message of an error within the block to the problems."""
    try:
        yield
    except TsugikiError as error:
        problems.append(without_path(str(error), folder))


def _tensor_problems(tensors: Mapping[str, Tensor], as_peft: object) -> list[str]:
    if not tensors:
        return [_("it holds no tensors")]
    problems = parse_tensors(as_peft, tensors)[2] if isinstance(as_peft, LoraConfig) else []
    return [*problems, *not_finite(tensors)]


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _is_copy(
    owners: Mapping[str, nn.Module],
    shared: Mapping[str, list[str]],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    key: str,
) -> bool:
    """Return whether a tensor of a file is a copy: of a weight of the base, or of a tensor under another of its names.

    `owners` are the modules of the base, `shared` the names of its shared parameters.
    """
    name, tensor = base_name(key), found[key]
    path, _dot, attribute = name.rpartition(".")
    owner = owners.get(path)
    weight = owner._parameters.get(attribute) if owner is not None else None
    if weight is None or weight.shape != tensor.shape:
        return False
    if weight.is_meta or equal_when_rounded(weight, tensor):
        return True
    others = {other for shared_name in shared.get(name, ()) for other in parameter_keys(shared_name)}
    return any(torch.equal(found[other], tensor) for other in others & expected.keys() & found.keys())
