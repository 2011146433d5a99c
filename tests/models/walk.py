"""Walk over every causal and encoder-decoder type of the installed transformers.

    python -m tests.models.walk results.jsonl [TYPE …]

Each line of the file is the result of one type. Types that are in the file already are skipped, so that a walk which
was interrupted goes on. Each type has a process of its own, which is killed after some minutes.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

from tests.models.life import Life, live
from tests.tiny_types import TASKS

MINUTES = 5
TOO_LARGE = ("vibevoice",)  # the general rule for tiny models leaves them at gigabytes


def types() -> list[tuple[str, str]]:
    """Each model type with each of its tasks; encoder-decoders that read sounds or text are listed once."""
    both = {model_type: task for task in ("speech", "seq2seq") for model_type in TASKS[task][1]}
    every = [(model_type, "causal") for model_type in TASKS["causal"][1]] + list(both.items())
    return [(model_type, task) for model_type, task in every if model_type not in TOO_LARGE]


def read_results(file: Path) -> dict[tuple[str, str], Life]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {(life.model_type, life.task): life for life in (Life(**json.loads(line)) for line in lines)}


def write_result(file: str, life: Life) -> None:
    with open(file, "a", encoding="utf-8") as out:
        out.write(json.dumps(dataclasses.asdict(life), ensure_ascii=False) + "\n")
    print(life.task, life.model_type, life.failed or "passed", flush=True)


def live_and_write(file: str, model_type: str, task: str) -> None:
    write_result(file, live(model_type, task))


def main(file: str, *only: str) -> None:
    results = read_results(Path(file))
    for model_type, task in types():
        if (model_type, task) in results or (only and model_type not in only):
            continue
        process = multiprocessing.get_context("fork").Process(target=live_and_write, args=(file, model_type, task))
        process.start()
        process.join(MINUTES * 60)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode:
            why = f"the process ended with {process.exitcode} (killed after {MINUTES} minutes if -9)"
            write_result(file, Life(model_type, task, failed={"build": why}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "TSUGIKI_LANG": "en"}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        main(*sys.argv[1:])
