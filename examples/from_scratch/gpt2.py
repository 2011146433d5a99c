"""Fourth step: the whole of GPT-2, frozen, with a pair beside each chosen layer.

Nothing of the model is rewritten. Each chosen layer is replaced by itself in a `LinearWithLoRA`, which is called as
the layer was; attention, cache, `generate` and training loops notice nothing.

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
"""The projections of GPT-2's attention: to query, key and value, and to the output."""


def apply_lora_to_gpt2(model: Model, rank: int, alpha: float, targets: Sequence[str] = ATTENTION) -> Model:
    """Freeze `model` and put a pair beside every layer whose name ends in one of `targets`, in place.

    Args:
        model: a GPT-2, or any model of `nn.Linear` and `Conv1D` layers.
        rank: see `LoRALayer`.
        alpha: see `LoRALayer`.
        targets: ends of names, matched after a dot. "c_proj" is the end of two layers in a GPT-2 block, the output of
            the attention and that of the feed-forward part; "attn.c_proj" is the end of one.

    Returns:
        The same model.

    Raises:
        ValueError: no such layer.
    """
    endings = tuple(f".{target}" for target in targets)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and f".{name}".endswith(endings)
    ]  # a list, made before anything is replaced
    if not names:
        raise ValueError(f"no layer's name ends in {' or '.join(targets)}")

    model.requires_grad_(False)
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        setattr(parent, child, LinearWithLoRA(getattr(parent, child), rank, alpha))
    return model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(those that train, all of them); a weight that two layers share counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)


def main() -> None:
    """Count on GPT-2 small's shapes; the meta device holds shapes and no numbers, so nothing is downloaded."""
    for targets in (ATTENTION, ("c_attn", "c_proj")):
        with torch.device("meta"):
            model = apply_lora_to_gpt2(GPT2LMHeadModel(GPT2Config()), rank=8, alpha=16, targets=targets)
        trainable, total = count_parameters(model)
        wrapped = sum(isinstance(module, LinearWithLoRA) for module in model.modules())
        share = f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.2f} %)"
        print(f"{' and '.join(targets)}: {wrapped} layers in 12 blocks, {share}")


if __name__ == "__main__":
    main()
