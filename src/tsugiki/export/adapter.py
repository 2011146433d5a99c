"""An adapter for llama.cpp and Ollama: the GGUF file, and a Modelfile beside it. And back."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tsugiki.adapters.format import Base
from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights, write_lora_weights
from tsugiki.base.gguf.file import read_header
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.adapter_file import Stored, read_gguf_adapter, write_gguf_adapter
from tsugiki.export.layout import HEAD, TABLE, gguf_names, llama_cpp_architecture
from tsugiki.export.loaders import is_another_base, llama_cpp_refusals
from tsugiki.export.ollama import CONTEXT, modelfile
from tsugiki.io.atomic import new_file
from tsugiki.lora.frozen_layer import features
from tsugiki.lora.targets import base_modules


@dataclass(frozen=True)
class Exported:
    """What was written."""

    layers: int
    ranks: str
    """`8`, or `4 to 16`."""
    alpha: float
    size: int
    """Of the GGUF file, bytes."""
    modelfile: Path


def export_gguf_adapter(
    folder: Path,
    out: Path,
    model_name: str | None = None,
    base: Path | None = None,
    stored: Stored = "f32",
    *,
    allow_other_base: bool = False,
) -> Exported:
    """Write the LoRA adapter in `folder` as GGUF, and beside it a Modelfile for Ollama; both, or neither.

    Args:
        folder: the adapter.
        out: the new GGUF file.
        model_name: its base, of which only the shape is read; unsaid, the one that the adapter names.
        base: the base as a GGUF file, to be checked against, and to stand in the Modelfile.
        stored: numbers of 32 bits, or of 16.
        allow_other_base: export an adapter that was trained on another base.

    Raises:
        TsugikiError: llama.cpp would refuse the adapter or compute something else, it does not fit the base, or a file
            is there already or cannot be written.
    """
    lora = read_lora_weights(folder)
    name = model_name or lora.base.name
    if name is None:
        raise TsugikiError(f"{folder} does not say what base it was trained on; name it (--model)")
    if not allow_other_base and is_another_base(lora.base.fingerprint, name):
        raise TsugikiError(
            f"{folder} was trained on another base ({lora.base.name}) than {name}: their weights differ; "
            "--allow-other-base exports it all the same"
        )
    model = load_meta_model(name)
    problems = llama_cpp_refusals(lora, model)
    if problems:
        raise TsugikiError(
            f"llama.cpp would not compute {folder} as Tsugiki does: {'; '.join(problems)} "
            "(--merged exports both as one model)"
        )
    if base is not None:
        check_gguf_base(base, model, lora.layers)
    if out.suffix != ".gguf":
        raise TsugikiError(f"{out}: the name of a GGUF file ends in .gguf")
    beside = out.with_suffix(".Modelfile")
    context = min(getattr(model.config, "max_position_embeddings", None) or CONTEXT, CONTEXT)
    with new_file(out) as part:
        alpha = write_gguf_adapter(lora, model, part, stored)
        with new_file(beside) as text:
            begins = str(base.absolute()) if base else None
            text.write_text(modelfile(begins, f"./{out.name}", num_ctx=context), encoding="utf-8")
    ranks = sorted({layer.r for layer in lora.layers.values()})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return Exported(len(lora.layers), shown, alpha, out.stat().st_size, beside)


def import_gguf_adapter(file: Path, model_name: str, out: Path, *, allow_other_base: bool = False) -> LoraWeights:
    """Write the LoRA adapter in a GGUF file as the new PEFT folder `out`.

    Args:
        file: the GGUF file.
        model_name: its base, of which only the shape is read.
        out: the folder; must not be there, or be empty.
        allow_other_base: import an adapter that says it was made for another base.

    Raises:
        TsugikiError: no LoRA adapter, a broken one, or one that does not fit the base; `out` is there already or cannot
            be written.
    """
    lora = read_gguf_adapter(file, load_meta_model(model_name))
    if not allow_other_base and is_another_base(lora.base.fingerprint, model_name):
        raise TsugikiError(
            f"{file} was made for another base ({lora.base.name}) than {model_name}: their weights differ; "
            "--allow-other-base imports it all the same"
        )
    lora = dataclasses.replace(lora, base=Base(model_name, lora.base.fingerprint))
    write_lora_weights(lora, out, {"imported from": file.name})
    return lora


def check_gguf_base(file: Path, model: nn.Module, layers: Collection[str]) -> None:
    """Ask that adapters of these layers of `model` fit the base in a GGUF file.

    Raises:
        TsugikiError: no such file, no model, another architecture, or a tensor that is not there or of another shape.
    """
    header = read_header(file)
    if header.metadata.get("general.type") == "adapter":
        raise TsugikiError(f"{file} is an adapter; --base is the model that it is for")
    expected = llama_cpp_architecture(model)
    if header.architecture != expected:
        raise TsugikiError(f"{file} is of architecture {header.architecture!r}, and the adapter's base is {expected!r}")
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    names, modules = gguf_names(model), dict(base_modules(model))
    problems = []
    for path in layers:
        tensor = f"{names[path]}.weight"
        into, out = features(modules[path])
        wanted = (into, out) if names[path] == TABLE else (out, into)
        if tensor not in shapes:
            problems.append(f"it has no {tensor}")
        elif shapes[tensor] != wanted:
            problems.append(f"its {tensor} is {list(shapes[tensor])}, and the adapter is for {list(wanted)}")
    if TABLE in (names[path] for path in layers) and f"{HEAD}.weight" not in shapes:
        problems.append(f"its head is its {TABLE}, of which llama.cpp takes no adapter")
    if problems:
        raise TsugikiError(f"{file} is another base: {summarise_list(problems)}")
