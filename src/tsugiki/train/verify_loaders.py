"""What another program will refuse of the adapter that a run would train, said before it does."""

from tsugiki.base.loading import load_meta_model
from tsugiki.export import Loader
from tsugiki.export.compatibility import incompatibilities_before_training
from tsugiki.methods.table import METHODS
from tsugiki.train.config import RunConfig


def refusals_of_run(loader: Loader, settings: RunConfig) -> list[str]:
    """Why `loader` would not do with the run's adapter what Tsugiki does; none: it will.

    Raises:
        TsugikiError: no such loader, no such base, or settings that do not fit it.
    """
    if not METHODS[settings.method].trains_adapter:
        return ["it trains every weight, so that there will be no adapter: export the model"]
    return incompatibilities_before_training(loader, settings.adapter_config, load_meta_model(settings.model))
