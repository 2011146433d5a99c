"""Measurements, each a module that is run from the root of the repository: README.md says what each answers."""

import os
from pathlib import Path


def child_environment() -> dict[str, str]:
    """Return the environment of a process that imports this package, although not from its working directory."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
