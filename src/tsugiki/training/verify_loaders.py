"""Check before a run whether another program will be able to load its adapter."""

from tsugiki.base.loading import load_meta_model
from tsugiki.export import Loader
from tsugiki.export.compatibility import incompatibilities_before_training
from tsugiki.language import _
from tsugiki.methods.table import METHODS
from tsugiki.training.config import RunConfig


def refusals_of_run(loader: Loader, settings: RunConfig) -> list[str]:
    """Return the reasons why a loader could not use the run's adapter as Tsugiki does; empty if it can.

    Args:
        loader: the other program.
        settings: the settings of the run.

    Raises:
        TsugikiError: the base does not exist, or the settings do not fit it.
    """
    if not METHODS[settings.method].trains_adapter:
        return [_("the run trains every weight, so there will be no adapter; export the model instead")]
    return incompatibilities_before_training(loader, settings.adapter_config, load_meta_model(settings.model))
