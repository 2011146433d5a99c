"""Logits of llama.cpp, the oracle of the tests of GGUF files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

_F32 = 0  # ggml's number for the type


def llama_cpp_logits(model: Path, tokens: Sequence[int], lora: Path | None = None) -> torch.Tensor:
    """llama.cpp's logits of a row of tokens, [tokens, vocabulary], with keys and values in float32.

    Skips the test if llama-cpp-python is not installed.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    loaded = llama_cpp.Llama(
        str(model),
        lora_path=str(lora) if lora else None,
        n_ctx=max(64, len(tokens)),
        n_threads=1,
        logits_all=True,
        type_k=_F32,
        type_v=_F32,
        flash_attn=False,
        verbose=False,
    )
    try:
        loaded.eval(list(tokens))
        return torch.tensor(np.array(loaded.scores[: len(tokens)]))
    finally:
        loaded.close()
