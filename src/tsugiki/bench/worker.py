"""One contender in a process of its own: `python -m tsugiki.bench.worker NAME '{"model": …}'`.

Each line `step` on standard input is answered by a line of JSON on standard output; see `StepBarrier` for what it says.
What libraries print goes to standard error.
"""

import json
import os
import sys
from typing import Any

from tsugiki.bench.contenders import CONTENDERS, GENERATORS, LIMIT
from tsugiki.bench.work import StepBarrier, Stopped, Work
from tsugiki.errors import error_text

JOBS = {**CONTENDERS, **GENERATORS, "limit": LIMIT}


def main(name: str, work: str) -> None:
    """Serve steps until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        JOBS[name].run(Work(**json.loads(work)), StepBarrier(sys.stdin.readline, send))
    except Stopped:
        pass
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error_text(error, 500)}"})
        raise
    finally:
        sys.stderr.flush()
    os._exit(0)  # no trainer is to write its last checkpoint


if __name__ == "__main__":
    main(*sys.argv[1:])
