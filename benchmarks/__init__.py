"""Measurements that only the documents need. Run from the repository root: `python -m benchmarks.NAME --help`."""

import os
from pathlib import Path


def import_in_children() -> None:
    """Let the processes of benchmark entries import this package, as they do not import from the working directory."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
