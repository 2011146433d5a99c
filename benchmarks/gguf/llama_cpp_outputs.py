"""Logits and greedy decoding of the same token ids by Transformers and by llama.cpp."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

NEW_TOKENS = 40
_F32 = 0  # ggml's number of the dtype, used for keys and values


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    """Return the logits of a Transformers model, [tokens, vocabulary]."""
    out: Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return out


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    """Return the ids that a Transformers model generates greedily after `ids`."""
    drawn = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    return list(drawn[0, len(ids) :].tolist())


def llama_cpp_outputs(
    path: Path, whole: list[int], ids: list[int], adapter: Path | None = None
) -> tuple[Tensor, list[int]]:
    """Return llama.cpp's logits for `whole`, and the ids that it generates greedily after `ids`.

    Args:
        path: a GGUF model.
        whole: token ids for the logits.
        ids: token ids of the prompt.
        adapter: a LoRA adapter in GGUF.
    """
    model = llama_cpp.Llama(
        str(path),
        lora_path=str(adapter) if adapter else None,
        n_ctx=256,
        logits_all=True,
        type_k=_F32,
        type_v=_F32,
        verbose=False,
    )
    model.eval(whole)
    found = torch.tensor(np.array(model.scores[: len(whole)]))
    model.reset()
    model.eval(ids)
    drawn: list[int] = []
    while len(drawn) < NEW_TOKENS and (not drawn or drawn[-1] != model.token_eos()):
        drawn.append(int(np.argmax(model.scores[len(ids) + len(drawn) - 1])))
        model.eval(drawn[-1:])
    model.close()
    return found, drawn


def common_prefix(ours: list[int], theirs: list[int]) -> int:
    """Return the number of tokens before the first difference."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
