"""Loss and gradients of a whole model, for a batch of rows; where every weight trains, this is the run's work.

    float32 weights ──copy──> bfloat16 replica ──> hidden states ──> loss, a few rows at a time (no whole logits)
          ^                                             │
          └── float32 gradients <── summed in order ────┴── each group of rows on a thread of its own

The replica is a plain copy in bfloat16: `torch.autocast`, which casts weights and activations on the way, was slower.
Groups are of fixed size and are summed in their order, so that the number of threads changes no bit of the result as
long as there are no more threads than groups.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.data.blocks import IGNORED
from tsugiki.train.parallel import side_by_side

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arithmetic: TypeAlias = Literal["bf16", "fp32"]

_GROUP = 1024  # tokens: enough for efficient products, few enough that their activations stay small
_CHUNK = 128  # rows of logits at once: they stay in the cache
_LOUD = 64  # a cap on logits shows only where they are large; a power of two comes off again without a trace


def native_arithmetic() -> Arithmetic:
    """bf16 where this machine's processor or accelerator multiplies it natively, else fp32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


class Gradients:
    """Adds the gradients of a batch to the `.grad` of a model's weights."""

    def __init__(self, model: "PreTrainedModel", arithmetic: Arithmetic, side_by_side: bool = True) -> None:
        self.model = model
        self.replica = copy.deepcopy(model).bfloat16() if arithmetic == "bf16" else model
        if self.replica is not model and model.device.type == "cpu":
            # Attention as plain products is a quarter faster here than torch's fused kernel, which computes in float32.
            self.replica.set_attn_implementation("eager")
        self.side_by_side = side_by_side
        self.head = find_head(model)

    def add(self, batch: Mapping[str, Tensor], count: Tensor | int) -> Tensor:
        """The loss: cross-entropy summed over the learned tokens, over `count`; its gradients are added to `.grad`.

        Args:
            batch: `input_ids`, `labels` (not shifted) and what isolates documents, each with a row first.
            count: learned tokens of the whole optimiser step.
        """
        weights = list(self.model.parameters())
        with torch.no_grad():
            if self.replica is not self.model:
                for own, weight in zip(self.replica.parameters(), weights, strict=True):
                    own.copy_(weight)
        self.replica.train()
        tasks = [partial(self._group, group, float(count)) for group in self._groups(batch)]
        on_cpu = batch["input_ids"].device.type == "cpu"
        found = side_by_side(tasks) if self.side_by_side and on_cpu else [task() for task in tasks]
        for _, grads in found:
            for weight, grad in zip(weights, grads, strict=True):
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                if grad is not None:
                    weight.grad += grad
        return torch.stack([loss for loss, _ in found]).sum()

    def _groups(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        rows, length = batch["input_ids"].shape
        size = max(1, _GROUP // length)
        return [{name: tensor[at : at + size] for name, tensor in batch.items()} for at in range(0, rows, size)]

    def _group(self, batch: Mapping[str, Tensor], count: float) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Loss of some rows, and the gradient of every parameter (None: it has no part in it)."""
        inputs = {name: _in_type(tensor, self.replica.dtype) for name, tensor in batch.items() if name != "labels"}
        labels, weights = batch["labels"][:, 1:], list(self.replica.parameters())
        if self.head is None:
            logits = self.replica(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum") / count
            return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)
        hidden = self.replica.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        head = self.replica.get_output_embeddings().weight
        loss, d_hidden, d_head = chunked_loss(hidden, head, labels, count)
        grads = list(torch.autograd.grad(hidden, weights, d_hidden, allow_unused=True))
        place = next(i for i, weight in enumerate(weights) if weight is head)
        grads[place] = d_head if grads[place] is None else d_head + grads[place]
        return loss, grads


@torch.no_grad()
def chunked_loss(hidden: Tensor, head: Tensor, labels: Tensor, count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of `hidden @ head.T`, and its gradients, without the logits as a whole.

    loss = -sum log p[label] / count, and d loss / d logits = (p - onehot(label)) / count, which goes at once into
    d hidden = d logits @ head and d head = d logits.T @ hidden.

    Args:
        hidden: [rows, length, width].
        head: [vocabulary, width].
        labels: [rows, length]; `IGNORED` where nothing is learned.
        count: what the sum is divided by.

    Returns:
        The loss (float32 at least), d hidden (like hidden), d head (float32 at least).
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    learned = labels.flatten() != IGNORED
    rows, targets = hidden.flatten(0, 1)[learned], labels.flatten()[learned][:, None]
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    d_rows, d_head = torch.empty_like(rows), torch.zeros(head.shape, dtype=exact, device=head.device)
    chunks = [torch.split(whole, _CHUNK) for whole in (rows, d_rows, targets)]
    for row, d_row, target in zip(*chunks, strict=True):
        probabilities = torch.softmax(row @ head.T, dim=-1, dtype=exact)
        chosen = probabilities.gather(1, target)
        loss -= chosen.clamp_min(1e-30).log().sum() / count
        d_logits = probabilities.scatter_(1, target, chosen - 1).div_(count).to(row.dtype)
        torch.mm(d_logits, head, out=d_row)
        d_head += d_logits.T @ row
    d_hidden = torch.zeros_like(hidden)
    d_hidden.flatten(0, 1)[learned] = d_rows
    return loss, d_hidden, d_head


@torch.no_grad()
def find_head(model: "PreTrainedModel") -> nn.Linear | None:
    """The layer from hidden states to logits, where there is nothing else between the two; found out by trying.

    None for a model that scales or caps its logits, or whose head has a bias: there the whole logits are needed.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or model.base_model is model:
        return None
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    training = model.training
    model.eval()
    head.weight *= _LOUD
    try:
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        logits = model(input_ids=ids, use_cache=False).logits
        if hidden is None or hidden.shape[-1] != head.in_features:
            return None
        return head if torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-5) else None
    finally:
        head.weight /= _LOUD
        model.train(training)


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of numbers in the model's own type; ids as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
