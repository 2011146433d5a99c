"""Progress bars of transformers are hidden inside a block, and as before after it."""

import pytest
from transformers.utils import logging

from tsugiki.io import hidden_progress_bars


@pytest.mark.parametrize("enabled", [True, False])
def test_the_state_is_restored(enabled: bool):
    before = logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if enabled else logging.disable_progress_bar)()
        with hidden_progress_bars():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() == enabled
        with pytest.raises(KeyboardInterrupt), hidden_progress_bars():
            raise KeyboardInterrupt
        assert logging.is_progress_bar_enabled() == enabled
        with hidden_progress_bars(hide=False):
            assert logging.is_progress_bar_enabled() == enabled
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
