"""The shapes of a run's model, from its config, before its weights are loaded."""

from dataclasses import dataclass

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.resolve import load_config, loading_errors
from tsugiki.model.meta import meta_model
from tsugiki.training.model.rows import tokens_of_row

SMALL_MODEL = 50_000_000
"""Models with fewer parameters are not measured before a run, neither their speed nor their memory."""


@dataclass(frozen=True)
class Shapes:
    """The model of a run without its weights."""

    config: PretrainedConfig
    model: PreTrainedModel
    """The model on torch's meta device, not grafted."""
    parameters: int
    """Number of parameters."""
    row_tokens: int
    """Tokens of a row of the run."""


def find_shapes(name: str, block_size: int | None, virtual_tokens: int) -> Shapes:
    """Return the shapes of the model with this name, and the tokens of its rows, from these settings of a run."""
    config = load_config(name)
    with loading_errors(name):
        model = meta_model(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shapes(config, model, parameters, tokens_of_row(model, block_size, virtual_tokens))
