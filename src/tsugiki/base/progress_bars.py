"""Hide the progress bars of transformers and huggingface_hub temporarily."""

from collections.abc import Iterator
from contextlib import contextmanager


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
