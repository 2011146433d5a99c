"""Which of the processes of a run this one is, by the variables that launchers of processes set."""

import os


def is_main_process() -> bool:
    """Return whether this is the main process of a run, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def several_processes() -> bool:
    """Return whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
