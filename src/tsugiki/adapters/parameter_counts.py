"""Count the trainable parameters of a model."""

from torch import nn

from tsugiki.lora.graft import trainable_parameters
from tsugiki.lowbit.quantization import count_parameters


def print_trainable_parameters(model: nn.Module) -> None:
    """Print the number of trainable parameters, in the format of PEFT's method of the same name.

    The total includes the base and the active adapter; for a quantised base, the number before quantising is used.
    """
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    total = count_parameters(model)
    share = trainable / total if total else 0
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * share:.4f}")
