"""Export a LoRA adapter for llama.cpp and Ollama, as a GGUF file with a Modelfile; and import such a GGUF file."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights, write_lora_weights
from tsugiki.adapters.metadata import BaseReference, Provenance, Source
from tsugiki.base.gguf.file import read_header
from tsugiki.base.identity import named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.dtypes import GgufAdapterDtype
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.adapter_file import read_gguf_adapter, write_gguf_adapter
from tsugiki.export.compatibility import llama_cpp_incompatibilities
from tsugiki.export.layout import OUTPUT_HEAD, TOKEN_EMBEDDING, gguf_names, llama_cpp_architecture
from tsugiki.export.ollama import MAX_CONTEXT, modelfile
from tsugiki.io.atomic import new_file
from tsugiki.language import _
from tsugiki.lora.targets import base_modules
from tsugiki.model.linear import features

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AdapterExport:
    """The result of an export."""

    layers: int
    ranks: str
    """`8`, or `4 to 16`."""
    alpha: float
    bytes: int
    """The size of the GGUF file."""
    modelfile: Path


def export_gguf_adapter(
    folder: Path,
    out: Path,
    model_name: str | None = None,
    base: Path | None = None,
    dtype: GgufAdapterDtype = "f32",
    *,
    allow_base_mismatch: bool = False,
) -> AdapterExport:
    """Write a LoRA adapter as a GGUF file, and a Modelfile for Ollama in the same folder. Both appear, or neither.

    Args:
        folder: the adapter's folder.
        out: the new GGUF file.
        model_name: the adapter's base, of which only the config is read; None: the base that the adapter names.
        base: the base as a GGUF file, with which the adapter is compared, and which the Modelfile names.
        dtype: the type of the factors in the file.
        allow_base_mismatch: export an adapter that was trained on another base.

    Raises:
        TsugikiError: llama.cpp would reject the adapter or give another result, the adapter does not fit the base, or a
            file exists already or cannot be written.
    """
    lora = read_lora_weights(folder)
    name = model_name or lora.base.name
    if name is None:
        raise TsugikiError(
            _("{folder} does not name the base that it was trained on; pass it as --model").format(folder=folder)
        )
    why = "" if allow_base_mismatch else why_different(lora.base, named_identity(name))
    if why:
        raise TsugikiError(
            _(
                "{folder} was trained on another base ({trained}) than {given}: {why}; --allow-base-mismatch "
                "exports it anyway"
            ).format(folder=folder, trained=lora.base.name, given=name, why=why)
        )
    model = load_meta_model(name)
    problems = llama_cpp_incompatibilities(lora, model)
    if problems:
        raise TsugikiError(
            _(
                "llama.cpp would not compute {folder} as Tsugiki does: {problems} (--merged exports base and "
                "adapter as one model)"
            ).format(folder=folder, problems="; ".join(problems))
        )
    if base is not None:
        check_gguf_base(base, model, lora.layers)
    if out.suffix != ".gguf":
        raise TsugikiError(_("{out}: the name of a GGUF file must end in .gguf").format(out=out))
    modelfile_path = out.with_suffix(".Modelfile")
    context = min(getattr(model.config, "max_position_embeddings", None) or MAX_CONTEXT, MAX_CONTEXT)
    with new_file(out) as temporary:
        alpha = write_gguf_adapter(lora, model, temporary, dtype)
        with new_file(modelfile_path) as temporary_modelfile:
            base_path = str(base.absolute()) if base else None
            temporary_modelfile.write_text(modelfile(base_path, f"./{out.name}", num_ctx=context), encoding="utf-8")
    ranks = sorted({layer.r for layer in lora.layers.values()})
    ranks_text = (
        str(ranks[0]) if len(ranks) == 1 else _("{lowest} to {highest}").format(lowest=ranks[0], highest=ranks[-1])
    )
    return AdapterExport(len(lora.layers), ranks_text, alpha, out.stat().st_size, modelfile_path)


def import_gguf_adapter(file: Path, model_name: str, out: Path, *, allow_base_mismatch: bool = False) -> LoraWeights:
    """Write the LoRA adapter in a GGUF file as a new folder in PEFT's format.

    Args:
        file: the GGUF file.
        model_name: the adapter's base, of which only the config is read.
        out: the new folder; it must not exist, or be empty.
        allow_base_mismatch: import an adapter that was made for another base.

    Raises:
        TsugikiError: the file is not a LoRA adapter, is broken or does not fit the base, or `out` exists already or
            cannot be written.
    """
    lora = read_gguf_adapter(file, load_meta_model(model_name))
    why = "" if allow_base_mismatch else why_different(lora.base, named_identity(model_name))
    if why:
        raise TsugikiError(
            _(
                "{file} was made for another base ({base}) than {given}: {why}; --allow-base-mismatch imports it anyway"
            ).format(file=file, base=lora.base.name, given=model_name, why=why)
        )
    lora = dataclasses.replace(lora, base=BaseReference(name=model_name, fingerprint=lora.base.fingerprint))
    write_lora_weights(lora, out, Provenance(operation="import", sources=(Source(name=file.name),)))
    return lora


def check_gguf_base(file: Path, model: "PreTrainedModel", layers: Collection[str]) -> None:
    """Check that an adapter fits the base in a GGUF file.

    `model` is the base that the adapter was trained on; a model on the meta device is enough. `layers` names the layers
    in it that the adapter changes.

    Raises:
        TsugikiError: the file does not exist or is not a model, or its architecture, or the name or shape of a tensor,
            differs from the base's.
    """
    header = read_header(file)
    if header.metadata.get("general.type") == "adapter":
        raise TsugikiError(_("{file} is an adapter; pass the adapter's base as --base").format(file=file))
    expected = llama_cpp_architecture(model)
    if header.architecture != expected:
        raise TsugikiError(
            _("{file} has the architecture {architecture!r}, and the adapter's base has {expected!r}").format(
                file=file, architecture=header.architecture, expected=expected
            )
        )
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    names, modules = gguf_names(model), dict(base_modules(model))
    problems = []
    for path in layers:
        tensor = f"{names[path]}.weight"
        in_features, out_features = features(modules[path])
        is_embedding = names[path] == TOKEN_EMBEDDING
        shape = (in_features, out_features) if is_embedding else (out_features, in_features)
        if tensor not in shapes:
            problems.append(_("it has no {tensor}").format(tensor=tensor))
        elif shapes[tensor] != shape:
            problems.append(
                _("its {tensor} is {found}, and the adapter is for {shape}").format(
                    tensor=tensor, found=list(shapes[tensor]), shape=list(shape)
                )
            )
    if TOKEN_EMBEDDING in (names[path] for path in layers) and f"{OUTPUT_HEAD}.weight" not in shapes:
        problems.append(
            _("its output head is tied to {embedding}, which llama.cpp then cannot adapt").format(
                embedding=TOKEN_EMBEDDING
            )
        )
    if problems:
        raise TsugikiError(_("{file} is another base: {problems}").format(file=file, problems=summarise_list(problems)))
