"""Classes of transformers for annotations; `Any` in a running program, because importing transformers takes seconds."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig as PretrainedConfig
    from transformers import PreTrainedModel as PreTrainedModel
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
else:
    PretrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any
