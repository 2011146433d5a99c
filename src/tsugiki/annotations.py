"""What annotations name: classes of transformers, and what the command line says of a parameter.

The classes are `Any` in a running program, because importing transformers takes seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from transformers import PretrainedConfig as PretrainedConfig
    from transformers import PreTrainedModel as PreTrainedModel
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
else:
    PretrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any

Names: TypeAlias = str | Sequence[str]
"""One name, or several; the flag can be repeated."""


@dataclass(frozen=True)
class Flag:
    """Says of a parameter, in its annotation, what its flag needs besides its name, type, default and description."""

    least: float | None = None
    most: float | None = None
    group: str | None = None
    """The group in the help."""
