"""The names that transformers and llama.cpp give to the same tensors."""

from collections.abc import Iterable

from tsugiki.base.gguf.file import require_gguf


def llama_cpp_names(architecture: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """Map transformers' names of parameters to llama.cpp's; parameters without a name in llama.cpp are left out.

    Args:
        architecture: llama.cpp's name for the architecture, such as `gemma3`.
        layers: the number of blocks of the model.
        names: such as `model.layers.0.self_attn.q_proj.weight`, which llama.cpp calls `blk.0.attn_q.weight`.
    """
    require_gguf()
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known = get_tensor_name_map(number, layers)
    found = {name: known.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: gguf_name for name, gguf_name in found.items() if gguf_name is not None}
