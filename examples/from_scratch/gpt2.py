"""Step 4: a frozen GPT-2 with a LoRA branch on each target layer.

The model's code is not changed. Each target layer is wrapped in a `LinearWithLoRA`, which is called in the same way as
the layer, so attention, key-value cache, `generate` and training loops work as before.

    python examples/from_scratch/gpt2.py
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from linear import LinearWithLoRA
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

Model = TypeVar("Model", bound=nn.Module)

ATTENTION = ("attn.c_attn", "attn.c_proj")
"""The projections of GPT-2's attention: query, key and value in one layer, and the output."""


def apply_lora_to_gpt2(model: Model, rank: int, alpha: float, targets: Sequence[str] = ATTENTION) -> Model:
    """Freeze `model` and wrap every layer whose name ends in one of `targets`, in place.

    Args:
        model: a GPT-2, or any model with `nn.Linear` and `Conv1D` layers.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
        targets: endings of module names that start after a dot. "c_proj" matches two layers in each GPT-2 block, the
            outputs of the attention and of the feed-forward part; "attn.c_proj" matches one.

    Returns:
        The same model.

    Raises:
        ValueError: no layer matches.
    """
    endings = tuple(f".{target}" for target in targets)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and f".{name}".endswith(endings)
    ]  # collected before any layer is replaced
    if not names:
        raise ValueError(f"no layer's name ends in {' or '.join(targets)}")

    model.requires_grad_(False)
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LinearWithLoRA(getattr(parent, child), rank, alpha))
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of (trainable, all) parameters; a weight that two layers share counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def main() -> None:
    """Count the parameters of GPT-2 small on the meta device, which stores shapes without values: no download."""
    for targets in (ATTENTION, ("c_attn", "c_proj")):
        with torch.device("meta"):
            model = apply_lora_to_gpt2(GPT2LMHeadModel(GPT2Config()), rank=8, alpha=16, targets=targets)
        trainable, total = count_parameters(model)
        wrapped = sum(isinstance(module, LinearWithLoRA) for module in model.modules())
        share = f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"
        print(f"{' and '.join(targets)}: {wrapped} layers in 12 blocks, {share}")


if __name__ == "__main__":
    main()
