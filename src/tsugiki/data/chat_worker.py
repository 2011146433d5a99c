"""The process that renders chat templates: `python -P -m tsugiki.data.chat_worker SECONDS BYTES`.

It prints an empty object when it is ready. Then it reads calls from standard input and prints their results on standard
output, a line of JSON each (see `chat_process`). The output of templates and libraries is redirected to standard error.
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tsugiki.data.chat import find_answers, render_prompt
from tsugiki.errors import TsugikiError

FUNCTIONS: dict[str, Callable[..., Any]] = {"find_answers": find_answers, "render_prompt": render_prompt}


def main(seconds: int, memory: int) -> None:
    """Answer calls until standard input ends.

    Args:
        seconds: the limit of processor time for one call.
        memory: the limit of memory in bytes, in addition to the memory in use when the process is ready.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from transformers.utils import chat_template_utils, logging  # noqa: F401  (imported before memory is limited)

    logging.set_verbosity_error()
    _limit_memory(memory)
    _send(answers, {})
    for line in sys.stdin.buffer:
        _limit_time(seconds)
        try:
            _send(answers, _answer(json.loads(line)))
        except MemoryError:
            os._exit(1)


def _answer(call: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": FUNCTIONS[call["function"]](**call["arguments"])}
    except TsugikiError as error:
        return {"error": str(error)}


def _send(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def _limit_memory(memory: int) -> None:
    """Let the operating system limit the memory of this process, where it supports that."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)


def _limit_time(seconds: int) -> None:
    """Let the operating system end this process after this much more processor time, where it supports that."""
    with suppress(ImportError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
