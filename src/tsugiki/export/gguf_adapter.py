"""Export a LoRA adapter for llama.cpp (`--lora`) as a GGUF file.

    general.type = "adapter", adapter.type = "lora", general.architecture = the base's
    adapter.lora.alpha       one value for all layers: ΔW = alpha / r · B A
    NAME.weight.lora_a       A [r, in]; for the token embedding its transpose [entries, r]
    NAME.weight.lora_b       B [out, r], with its rows in llama.cpp's order (see `llama_cpp_layers`)

The format has one alpha, so for a layer whose scaling is not alpha / r (rsLoRA, rank and alpha patterns) the remaining
factor is multiplied into B. llama.cpp reads only these keys. The keys that name the base are for users.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, read_lora_weights
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.identity import named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.llama_cpp_layers import TOKEN_EMBEDDING, gguf_names, in_llama_cpp_order, llama_cpp_architecture
from tsugiki.export.loaders import llama_cpp_incompatibilities
from tsugiki.export.ollama import check_gguf_name
from tsugiki.io.atomic import new_file
from tsugiki.language import _, sentences
from tsugiki.model.linear import features
from tsugiki.model.ungrafted import base_modules


class MergedOnlyError(TsugikiError):
    """llama.cpp would not compute an adapter as Tsugiki does; it can load base and adapter merged into one model."""

    problems: str
    """Why, in words for the reader."""


@dataclass(frozen=True)
class AdapterExport:
    """The result of an export."""

    layers: int
    ranks: str
    """`8`, or `4 to 16`."""
    alpha: float
    bytes: int


def export_gguf_adapter(
    folder: Path,
    out: Path,
    model_name: str | None = None,
    *,
    allow_base_mismatch: bool = False,
) -> AdapterExport:
    """Write a LoRA adapter as a GGUF file, which appears complete or not at all.

    The adapter's base, of which only the config is read, is by default the one that the adapter names.

    Raises:
        MergedOnlyError: llama.cpp would reject the adapter, or give another result with it.
    """
    lora = read_lora_weights(folder)
    name = model_name or lora.base.name
    if name is None:
        raise TsugikiError(
            "{folder} does not name the base that it was trained on; pass it as {flag:model}", folder=folder
        )
    why = "" if allow_base_mismatch else why_different(lora.base, named_identity(name))
    if why:
        raise TsugikiError(
            "{folder} was trained on another base ({trained}) than {given}: {why}; {flag:allow_base_mismatch} "
            "exports it anyway",
            folder=folder,
            trained=lora.base.name,
            given=name,
            why=why,
        )
    model = load_meta_model(name)
    problems = llama_cpp_incompatibilities(lora, model)
    if problems:
        message = _(
            "pass {flag:merged}, which merges the adapter into a GGUF file of its base; llama.cpp would not compute "
            "{folder} alone as Tsugiki does: {problems}",
            folder=folder,
            problems=sentences(problems),
        )
        error = MergedOnlyError(message)
        error.problems = sentences(problems)
        raise error
    check_gguf_name(out)
    with new_file(out) as temporary:
        alpha = write_gguf_adapter(lora, model, temporary)
    ranks = sorted({layer.r for layer in lora.layers.values()})
    ranks_text = str(ranks[0]) if len(ranks) == 1 else _("{lowest} to {highest}", lowest=ranks[0], highest=ranks[-1])
    return AdapterExport(len(lora.layers), ranks_text, alpha, out.stat().st_size)


def write_gguf_adapter(lora: LoraWeights, model: PreTrainedModel, out: Path) -> float:
    """Write a LoRA adapter for which `llama_cpp_incompatibilities` returns nothing to a GGUF file; return its alpha.

    The base may be on the meta device. The file is written in place; `new_file` makes it appear complete or not at all.
    """
    import gguf

    names = gguf_names(model)
    _check_fit(lora.layers, dict(base_modules(model)))
    alpha = Counter(_alpha(layer) for layer in lora.layers.values()).most_common(1)[0][0]
    writer = gguf.GGUFWriter(out, llama_cpp_architecture(model))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if lora.base.name:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, lora.base.name)
    if lora.base.fingerprint:
        writer.add_string("tsugiki.base.fingerprint", lora.base.fingerprint)
    for path, layer in lora.layers.items():
        A, B = layer.A.float(), layer.B.float()
        if _alpha(layer) != alpha:
            B = B * (_alpha(layer) / alpha)
        B, A = in_llama_cpp_order(model, path, B, A)
        A = A.T if names[path] == TOKEN_EMBEDDING else A
        for letter, tensor in (("a", A), ("b", B)):
            writer.add_tensor(f"{names[path]}.weight.lora_{letter}", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return alpha


def _check_fit(layers: Mapping[str, LayerFactors], modules: Mapping[str, nn.Module]) -> None:
    """Check that the factors have the shapes of their layers."""
    problems = []
    for path, layer in layers.items():
        A, B, (inputs, outputs) = layer.A, layer.B, features(modules[path])
        if A.dim() == B.dim() == 2 and (A.shape[1], B.shape[0]) == (inputs, outputs) and len(A) == B.shape[1]:
            continue
        message = _(
            "has A {first} and B {second}, but the layer has {inputs} inputs, {outputs} outputs",
            first=list(A.shape),
            second=list(B.shape),
            inputs=inputs,
            outputs=outputs,
        )
        shapes = message
        problems.append(f"{path} {shapes}")
    if problems:
        raise TsugikiError(
            "the adapter does not fit this base: {problems}; was it trained on another base?",
            problems=summarise_list(problems),
        )


def _alpha(layer: LayerFactors) -> float:
    return layer.scaling * layer.r
