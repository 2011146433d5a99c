"""How many parameters of a model train."""

from torch import nn

from tsugiki.base.quantization import count_parameters
from tsugiki.lora.graft import trainable_parameters


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters train, in the words of PEFT's method of the same name.

    All parameters are those of the base and of the active adapter; a quantised base counts as before it was quantised.
    """
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    total = count_parameters(model)
    share = trainable / total if total else 0
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * share:.4f}")
