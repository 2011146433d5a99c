"""Logits of llama.cpp."""

from pathlib import Path

import numpy as np
import pytest
import torch


def llama_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """llama.cpp's logits of one row of ids, [tokens, vocabulary]; skips the test if it is not installed."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    model.eval(ids.flatten().tolist())
    logits = torch.tensor(np.array(model.scores[: ids.numel()]))
    model.close()
    return logits
