"""Generation from a prompt: the likeliest token each time, with a cache of keys and values, in float32."""

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from tsugiki.bench.hugging_face import with_peft
from tsugiki.bench.models import build
from tsugiki.bench.work import ALPHA, NEW_TOKENS, RANK, StepBarrier, Work
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import disable_adapter, graft, ungraft
from tsugiki.lora.merge import merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def by_peft(work: Work, gate: StepBarrier, merged: bool) -> None:
    """PEFT's adapter."""
    model = with_peft(build(work.model, torch.float32))
    _shake(model)
    _generate(model.merge_and_unload() if merged else model, work, gate)


def by_tsugiki(work: Work, gate: StepBarrier, state: Literal["on", "off", "merged"]) -> None:
    """Tsugiki's adapter."""
    model = build(work.model, torch.float32)
    graft(model, LoraConfig(r=RANK, lora_alpha=ALPHA))
    _shake(model)
    if state == "merged":
        ungraft(merge(model))
    with disable_adapter(model) if state == "off" else nullcontext():
        _generate(model, work, gate)


peft_grafted = partial(by_peft, merged=False)
peft_merged = partial(by_peft, merged=True)
grafted = partial(by_tsugiki, state="on")
grafted_off = partial(by_tsugiki, state="off")
merged = partial(by_tsugiki, state="merged")


@torch.no_grad()
def _shake(model: Any) -> None:
    """Move the fresh adapter away from zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01)


def _generate(model: "PreTrainedModel", work: Work, gate: StepBarrier) -> None:
    model.eval()
    prompt = work.rows(model.config.vocab_size)[: work.batch].to(model.device)
    while True:
        gate.begin()
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        gate.end()
