"""Flash attention for packed rows, with a plain function in the place of the package's kernel.

transformers' own code for flash attention runs as on a GPU: it is told that the package flash-attn is installed.
"""

import itertools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils
from transformers import modeling_utils
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

from tests.tiny import seeded, store_of, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.data import Blocks, Collator, StepBatches, pack
from tsugiki.fast import FLASH, flash_arguments, keeps_apart_by_flash, paths, plain_attention
from tsugiki.methods import METHODS
from tsugiki.model import disable_dropout
from tsugiki.training import Gradients

calls: list[int] = []


def plain_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """`flash_attn_varlen_func` of flash-attn 2, [tokens, heads, width], one document after another."""
    assert causal
    assert dropout_p == 0
    calls.append(len(cu_seqlens_q) - 1)
    ends = cu_seqlens_q.tolist()
    assert max_seqlen_q == max(end - start for start, end in itertools.pairwise(ends))
    outputs = []
    for start, end in itertools.pairwise(ends):
        query, key, value = (tensor[start:end].transpose(0, 1)[None] for tensor in (q, k, v))
        before = torch.arange(end - start)[:, None] - torch.arange(end - start)
        mask = (before >= 0) & ((before <= window_size[0]) | (window_size[0] < 0))
        scale = softmax_scale or q.shape[-1] ** -0.5
        outputs.append(plain_attention(query, key, value, mask, scale, softcap or None)[0].transpose(0, 1))
    return torch.cat(outputs)


def plain_flash(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
    """`flash_attn_func` of flash-attn 2, [rows, tokens, heads, width]."""
    rows, tokens = q.shape[:2]
    ends = torch.arange(0, (rows + 1) * tokens, tokens)
    flat = [tensor.flatten(0, 1) for tensor in (q, k, v)]
    return plain_varlen(*flat, ends, ends, tokens, tokens, **settings).view(q.shape[0], tokens, *q.shape[2:])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    vars(package).update(
        flash_attn_func=plain_flash, flash_attn_varlen_func=plain_varlen, flash_attn_with_kvcache=plain_flash
    )
    vars(padding).update(pad_input=flash_utils._pad_input, unpad_input=flash_utils._unpad_input)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    second = flash_utils.FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]
    monkeypatch.setitem(second, "general_availability_check", lambda: True)
    monkeypatch.setattr(modeling_utils.PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    calls.clear()
    yield
    flash_utils._loaded_implementation = None


def grafted(kind: str) -> Any:
    model = tiny_model(kind, vocab_size=257)
    disable_dropout(model)
    torch.manual_seed(0)
    graft(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model


def packed_blocks() -> Blocks:
    """Rows that hold two to five documents."""
    ids = torch.randint(1, 257, (400,), generator=seeded(0)).tolist()
    documents = [ids[start : start + 4 + start % 9] for start in range(0, 380, 10)]
    return pack(store_of(documents), np.arange(len(documents)), 24, pad=0)


def gradients_of(model: Any) -> Gradients:
    batches = StepBatches(packed_blocks(), Collator("position_ids", model.dtype), 8, seed=1)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=1, process_index=0)
    return Gradients(model, model, batches, accelerator, 8)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text"])
def test_packed_rows_have_the_gradients_of_masks(kind: str, installed: None):
    masked, flash = grafted(kind), grafted(kind)
    expected = gradients_of(masked).step(0)
    flash.set_attn_implementation(FLASH)
    assert keeps_apart_by_flash(flash)
    calls.clear()
    found = gradients_of(flash).step(0)
    assert max(calls) > 8  # more documents than rows
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(flash.parameters(), masked.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_documents_are_those_of_transformers():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1]])
    (starts, _), (longest, _) = prepare_fa_kwargs_from_position_ids(positions)
    found = flash_arguments(positions)
    assert found["cu_seq_lens_q"].tolist() == starts.tolist() == [0, 3, 5, 6, 8]
    assert found["max_length_q"] == int(longest) == 3
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1], [2, 3, 4, 5]])  # the last row starts in the middle of a document
    assert flash_arguments(rows)["cu_seq_lens_k"].tolist() == [0, 4, 6, 8, 12]


@pytest.mark.parametrize("used", ["in 16 bits", "not apart", "not in 32 bits", "not with a soft prompt"])
def test_where_flash_attention_is_used(used: str, installed: None, monkeypatch: pytest.MonkeyPatch):
    model, undo = tiny_model("llama").to(torch.float32 if "32" in used else torch.bfloat16), []
    if "prompt" in used:
        prompt = METHODS["prompt-tuning"]
        prompt.prepare(model, prompt.config(num_virtual_tokens=4), base_dropout=False)
    if "apart" in used:
        monkeypatch.setattr(paths, "keeps_apart_by_flash", lambda model: False)
    paths._use_flash_attention(model, undo)
    assert model.config._attn_implementation == (FLASH if used == "in 16 bits" else "sdpa")
    for back in undo:
        back()
    assert model.config._attn_implementation == "sdpa"
