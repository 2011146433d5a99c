"""The same ids through Transformers and through llama.cpp: logits, and what each draws greedily after them."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from torch import Tensor

NEW = 40
"""Tokens that are drawn."""
_F32 = 0  # ggml's number of the type, of keys and values


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    """Of a model of Transformers, [tokens, vocabulary]."""
    out: Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return out


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    """The ids that a model of Transformers draws after these."""
    drawn = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    return list(drawn[0, len(ids) :].tolist())


def llama(path: Path, whole: list[int], ids: list[int], adapter: Path | None = None) -> tuple[Tensor, list[int]]:
    """llama.cpp's logits of `whole`, and the ids that it draws greedily after `ids`."""
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
    while len(drawn) < NEW and (not drawn or drawn[-1] != model.token_eos()):
        drawn.append(int(np.argmax(model.scores[len(ids) + len(drawn) - 1])))
        model.eval(drawn[-1:])
    model.close()
    return found, drawn


def alike(ours: list[int], theirs: list[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
