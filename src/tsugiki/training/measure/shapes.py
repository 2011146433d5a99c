"""The shapes of a run's model, from its config, before its weights are loaded."""

from dataclasses import dataclass

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.resolve import load_config, loading_errors
from tsugiki.model.meta import meta_model
from tsugiki.training.model.rows import tokens_of_row
from tsugiki.training.settings.config import RunConfig

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


def find_shapes(config: RunConfig, shapes: PretrainedConfig | None = None) -> Shapes:
    """Return the shapes of a run's model; `shapes` is the config of the model, which is read if it is None."""
    shapes = shapes or load_config(config.model)
    with loading_errors(config.model):
        model = meta_model(shapes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Shapes(shapes, model, parameters, tokens_of_row(model, config.block_size, config.virtual_tokens))
