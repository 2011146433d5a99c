"""Entries that generate from a prompt: greedy decoding in float32, with a KV cache."""

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from tsugiki.bench.hugging_face import with_peft
from tsugiki.bench.models import build
from tsugiki.bench.workload import ALPHA, NEW_TOKENS, RANK, StepBarrier, Workload
from tsugiki.fast.layers import graft
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import ungraft
from tsugiki.lora.hold import disable_adapter
from tsugiki.lora.merge import merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def peft(workload: Workload, barrier: StepBarrier, merged: bool) -> None:
    """Generate with PEFT's adapter, merged into the base or not."""
    model = with_peft(build(workload.model, torch.float32))
    _make_nonzero(model)
    _generate(model.merge_and_unload() if merged else model, workload, barrier)


def tsugiki(workload: Workload, barrier: StepBarrier, state: Literal["on", "off", "merged"]) -> None:
    """Generate with Tsugiki's adapter: active, disabled, or merged into the base."""
    model = build(workload.model, torch.float32)
    graft(model, LoraConfig(r=RANK, lora_alpha=ALPHA))
    _make_nonzero(model)
    if state == "merged":
        ungraft(merge(model))
    with disable_adapter(model) if state == "off" else nullcontext():
        _generate(model, workload, barrier)


peft_grafted = partial(peft, merged=False)
peft_merged = partial(peft, merged=True)
grafted = partial(tsugiki, state="on")
grafted_off = partial(tsugiki, state="off")
merged = partial(tsugiki, state="merged")


@torch.no_grad()
def _make_nonzero(model: Any) -> None:
    """Add a constant to the adapter's parameters, because a new adapter does not change the output."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01)


def _generate(model: "PreTrainedModel", workload: Workload, barrier: StepBarrier) -> None:
    model.eval()
    prompt = workload.rows(model.config.vocab_size)[: workload.batch].to(model.device)
    while True:
        barrier.begin()
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        barrier.end()
