"""Loss and gradients of a model for a batch of rows: the work of a run.

    what trains, float32 ──> the model, bf16 or fp32 ──> hidden states ──> loss, a few rows at a time (no whole logits)
          ^                                                  │
          └── float32 gradients <── summed in order ─────────┴── each group of rows on a thread of its own

Where every weight trains, a replica of the model in bfloat16 computes: `torch.autocast`, which casts weights and
activations on the way, was slower. Where an adapter trains, its frozen base is in that type itself.

Groups are of fixed size and are summed in their order, so that the number of threads changes no bit of the result as
long as there are no more threads than groups.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.fast.loss import chunked_loss, find_head
from tsugiki.labels import IGNORE_INDEX
from tsugiki.lora.masks import draw_seed, masks_from
from tsugiki.train.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Gradients:
    """Adds the gradients of a batch to the `.grad` of what trains in a model."""

    def __init__(self, model: "PreTrainedModel", computing: "PreTrainedModel", group: int, ordered: bool) -> None:
        """Prepare.

        Args:
            model: holds what trains, as parameters with `requires_grad`.
            computing: what runs: the model itself, or a copy of it in another type, brought up to date every time.
            group: tokens of a group; a longer row is a group by itself.
            ordered: one group after another, as dropout inside the base asks, which draws from torch's one generator.
        """
        self.model, self.computing, self.group, self.ordered = model, computing, group, ordered
        self.head = find_head(computing)

    def add(self, batch: Mapping[str, Tensor], count: Tensor | int) -> Tensor:
        """The loss: cross-entropy summed over the learned tokens, over `count`; its gradients are added to `.grad`.

        Args:
            batch: `input_ids`, `labels` (not shifted) and what isolates documents, each with a row first.
            count: learned tokens of the whole optimiser step.
        """
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        own = [weight for weight in self.computing.parameters() if weight.requires_grad]
        if self.computing is not self.model:
            with torch.no_grad():
                for copied, weight in zip(own, weights, strict=True):
                    copied.copy_(weight)
        self.computing.train()
        tasks = [partial(self._group, group, float(count), own, _generator()) for group in self._groups(batch)]
        alone = self.ordered or batch["input_ids"].device.type != "cpu"
        found = [task() for task in tasks] if alone else run_in_threads(tasks)
        for _, grads in found:
            for weight, grad in zip(weights, grads, strict=True):
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                if grad is not None:
                    weight.grad += grad
        return torch.stack([loss for loss, _ in found]).sum()

    def _groups(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        rows, length = batch["input_ids"].shape
        size = max(1, self.group // length)
        return [{name: tensor[at : at + size] for name, tensor in batch.items()} for at in range(0, rows, size)]

    def _group(
        self, batch: Mapping[str, Tensor], count: float, own: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Loss of some rows, and the gradient of every parameter that trains (None: it has no part in it)."""
        model = self.computing
        inputs = {name: _in_type(tensor, model.dtype) for name, tensor in batch.items() if name != "labels"}
        labels = batch["labels"][:, 1:]
        with masks_from(generator):
            if self.head is None:
                logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
            else:
                hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
                loss = chunked_loss(hidden, self.head, labels)
        loss = loss / count
        return loss.detach(), torch.autograd.grad(loss, own, allow_unused=True)


def _generator() -> torch.Generator:
    """A generator of dropout masks, seeded by torch's own."""
    return torch.Generator().manual_seed(draw_seed())


def _in_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of numbers in the model's own type; ids as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
