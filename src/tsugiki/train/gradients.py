"""Compute the loss of a batch of rows and its gradients.

    trained parameters, float32 ──> the model, bf16 or fp32 ──> hidden states ──> loss in chunks (no full logits)
          ^                                                        │
          └── float32 gradients <── summed in a fixed order <──────┴── one thread for each group of rows

In full fine-tuning with bf16, a copy of the model in bfloat16 computes. `torch.autocast`, which casts weights and
activations during the forward pass, was slower. If an adapter trains, the frozen base itself has this dtype.

Groups have a fixed size, and their gradients are summed in a fixed order. So the result is bit-identical for every
number of threads up to the number of groups.
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
    """Computes the gradients of batches and adds them to the `.grad` of a model's trained parameters."""

    def __init__(self, model: "PreTrainedModel", computing: "PreTrainedModel", group: int, ordered: bool) -> None:
        """Create it.

        Args:
            model: the model whose parameters with `requires_grad` train.
            computing: the model that computes: `model` itself, or a copy in another dtype, into which the parameters
                are copied for every batch.
            group: number of tokens in a group of rows; a longer row is a group by itself.
            ordered: compute the groups one after another. Dropout inside the base requires it, because it uses torch's
                global random generator.
        """
        self.model, self.computing, self.group, self.ordered = model, computing, group, ordered
        self.head = find_head(computing)

    def add(self, batch: Mapping[str, Tensor], count: Tensor | int) -> Tensor:
        """Add the gradients of a batch to `.grad`.

        Args:
            batch: `input_ids`, `labels` (not shifted) and the inputs that mask documents from each other; the first
                axis of each is the row.
            count: number of target tokens in the whole optimiser step.

        Returns:
            The cross-entropy summed over the target tokens of the batch, divided by `count`.
        """
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        copies = [weight for weight in self.computing.parameters() if weight.requires_grad]
        if self.computing is not self.model:
            with torch.no_grad():
                for copied, weight in zip(copies, weights, strict=True):
                    copied.copy_(weight)
        self.computing.train()
        tasks = [partial(self._group, group, float(count), copies, _generator()) for group in self._groups(batch)]
        in_order = self.ordered or batch["input_ids"].device.type != "cpu"
        results = [task() for task in tasks] if in_order else run_in_threads(tasks)
        for _, grads in results:
            for weight, grad in zip(weights, grads, strict=True):
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                if grad is not None:
                    weight.grad += grad
        return torch.stack([loss for loss, _ in results]).sum()

    def _groups(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        rows, length = batch["input_ids"].shape
        size = max(1, self.group // length)
        return [{name: tensor[at : at + size] for name, tensor in batch.items()} for at in range(0, rows, size)]

    def _group(
        self, batch: Mapping[str, Tensor], count: float, weights: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the loss of some rows and its gradient for each weight (None: the loss does not depend on it)."""
        model = self.computing
        inputs = {name: _in_dtype(tensor, model.dtype) for name, tensor in batch.items() if name != "labels"}
        labels = batch["labels"][:, 1:]
        with masks_from(generator):
            if self.head is None:
                logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
            else:
                hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
                loss = chunked_loss(hidden, self.head, labels)
        loss = loss / count
        return loss.detach(), torch.autograd.grad(loss, weights, allow_unused=True)


def _generator() -> torch.Generator:
    """Return a generator for dropout masks, seeded from torch's global generator."""
    return torch.Generator().manual_seed(draw_seed())


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert an attention mask to the dtype of the model; leave ids as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
