"""The number of this process among the processes of a run, from the environment variables that launchers set.

The command line imports this module, so it does not import torch.
"""

import os


def several_processes() -> bool:
    """Return whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Return whether this is the main process of a run, or the only one."""
    return os.environ.get("RANK", "0") == "0"
