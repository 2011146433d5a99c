"""Import torch and transformers, which takes seconds, and show a message meanwhile."""

import sys
from importlib import import_module

from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.ranks import is_main_process


def import_libraries(module: str = "tsugiki.train.evaluation.targets") -> None:
    """Import a module that needs torch and transformers; in a terminal, an animated message is shown meanwhile.

    Args:
        module: its name.
    """
    if module in sys.modules or not is_main_process():
        return
    with ProgressDisplay().stage(_("loading PyTorch and Transformers"), None):
        import_module(module)
