"""Tensors' names: Transformers' and llama.cpp's."""

from collections.abc import Iterable

from tsugiki.base.gguf.file import require_gguf


def llama_cpp_names(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """Transformers' name -> llama.cpp's, of those that llama.cpp has a name for.

    Args:
        architecture: llama.cpp's name of it, such as `gemma3`.
        layers: how many blocks the model has.
        names: of parameters, such as `model.layers.0.self_attn.q_proj.weight` (in a GGUF file `blk.0.attn_q.weight`).
    """
    require_gguf()
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(number, layers)
    theirs = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: their for name, their in theirs.items() if their is not None}
