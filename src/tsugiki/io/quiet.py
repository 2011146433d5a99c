"""Hide messages and progress bars of other libraries on which a user of Tsugiki cannot act."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tsugiki.errors import TsugikiWarning

_LOUD = "bitsandbytes"  # PEFT imports it, and it warns of missing kernels


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block only errors of transformers and bitsandbytes are shown, and warnings that Tsugiki gives."""
    from transformers.utils import logging as transformers_logging

    other = logging.getLogger(_LOUD)
    before, level = transformers_logging.get_verbosity(), other.level
    transformers_logging.set_verbosity_error()
    other.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", TsugikiWarning)
            yield
    finally:
        transformers_logging.set_verbosity(before)
        other.setLevel(level)


@contextmanager
def hidden_progress_bars(hide: bool = True) -> Iterator[None]:
    """Hide the progress bars of transformers and huggingface_hub inside the block; their state is restored at the end.

    Args:
        hide: False: leave them as they are.
    """
    from transformers.utils import logging as transformers_logging

    visible = transformers_logging.is_progress_bar_enabled()
    if hide and visible:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide and visible:
            transformers_logging.enable_progress_bar()
