"""Count the files of Tsugiki that a run of `tsugiki train` enters, and the way of its settings through them.

    python -m benchmarks.files_of_a_run

A profile hook sees every call of a run of three steps with the embedded model. Until the loop begins, it follows the
settings: a stop is a stay in one file, in functions that take the settings of the run or what contains them, the config
of its model or adapter, or its shapes, and a return is a stop in a file that was left before. They measure how far a
reader has to go.
"""

import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import tsugiki

_ROOT = f"{Path(tsugiki.__file__).parent}/"
_LOOP = "TrainingLoop.run"
_NAMES = {"config", "settings", "shapes", "run", "start"}
"""Names of parameters that are counted, unless they hold a number, such as the first byte of a tensor."""


class Walk:
    """What a profile hook has seen."""

    def __init__(self) -> None:
        """Begin before the run."""
        self.functions: set[tuple[str, str]] = set()
        """File and name of every function that was called."""
        self.stops: list[str] = []
        """The files through which the settings went, in order."""
        self.is_before_loop = True

    def see(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Take note of a call; this is the profile hook."""
        file = frame.f_code.co_filename
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or a class
        if event != "call" or not is_function or not file.startswith(_ROOT):
            return
        name = frame.f_code.co_qualname
        self.functions.add((file, name))
        self.is_before_loop = self.is_before_loop and name != _LOOP
        if self.is_before_loop and _takes_settings(frame) and (not self.stops or self.stops[-1] != file):
            self.stops.append(file)


def _takes_settings(frame: FrameType) -> bool:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
    kinds = {name: type(frame.f_locals.get(name)) for name in names if name != "self"}
    if any(name in _NAMES and kind is not int for name, kind in kinds.items()):
        return True
    return any(base.__name__ == "RunConfig" for kind in kinds.values() for base in kind.__mro__)


@contextmanager
def profiled(hook: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    """Call a hook for every call of a function within the block, in all threads."""
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def main() -> None:
    """Run `tsugiki train`, and print the counts."""
    from tsugiki.cli.main import main as command

    walk = Walk()
    with tempfile.TemporaryDirectory() as folder:
        texts, out = f"{_ROOT}assets/quickstart", f"{folder}/run"
        length = ["--max-steps", "3", "--batch-size", "4", "--block-size", "128"]
        sys.argv = [
            "tsugiki",
            "train",
            "--model",
            "embedded",
            "--data",
            texts,
            "--out",
            out,
            "--prompts",
            "春は",
            *length,
        ]
        with profiled(walk.see), suppress(SystemExit):
            command()
    imported = {
        file
        for module in sys.modules.values()
        if (file := getattr(module, "__file__", None)) and file.startswith(_ROOT)
    }
    called = {file for file, _name in walk.functions}
    returns = sum(file in walk.stops[:number] for number, file in enumerate(walk.stops))
    print(f"files imported: {len(imported)}; {len(walk.functions)} functions called in {len(called)} of them")
    print(f"settings before the loop: {len(walk.stops)} stops in {len(set(walk.stops))} files, {returns} returns")
    for file in walk.stops:
        print(f"    {file.removeprefix(_ROOT)}")


if __name__ == "__main__":
    main()
