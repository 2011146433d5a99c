"""The process of one entry: `python -m benchmarks.speed.worker MODULE:FUNCTION '{"model": …}'`.

For each line `step` on standard input it takes a step and prints a line of JSON on standard output (see `StepBarrier`).
The output of libraries is redirected to standard error.
"""

import json
import os
import re
import sys
from typing import Any

from benchmarks.speed.entries import load_function
from benchmarks.speed.workload import StepBarrier, StopRequested, Workload
from tsugiki.errors import error_text
from tsugiki.io.formatting import format_size

OUT_OF_MEMORY = "out of memory"
"""The beginning of the reason if there was not enough memory."""


def main(function: str, workload: str) -> None:
    """Let a `BenchmarkEntry.function` process a `Workload`, given as JSON, until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        load_function(function)(Workload(**json.loads(workload)), StepBarrier(sys.stdin.readline, send))
    except StopRequested:
        pass
    except Exception as error:
        send({"error": _reason(error)})
        raise
    finally:
        sys.stderr.flush()
    os._exit(0)  # skips the exit handlers of trainers, which may write a last checkpoint


def _reason(error: Exception) -> str:
    """Return in one line why an entry failed."""
    text = error_text(error, 500)
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if size := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", text):  # torch on a processor
        return f"{OUT_OF_MEMORY}: {format_size(int(size[1]))} more were needed"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main(*sys.argv[1:])
