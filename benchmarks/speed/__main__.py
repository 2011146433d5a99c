"""Compare speed and memory of training with PEFT, TRL and others, and with the limit of this machine.

    python -m benchmarks.speed --model rinna-medium --entries all --out figures

Every entry trains on the same tokens in its own process, and only one process takes steps at a time. Some minutes for
the default entries on two cores. With --preference, the entries learn pairs of answers with DPO.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models import known_models
from benchmarks.speed.bench import choose_entries, run_benchmark
from benchmarks.speed.entries import DEFAULT_ENTRIES, PREFERENCE_ENTRIES, TRAINING_ENTRIES
from benchmarks.speed.results import results_page, write_results
from benchmarks.speed.workload import STEPS, Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable
from tsugiki.report.table import Table

_LEAST_ANSWER = 2  # tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the entries, print the table and write the results.

    Raises:
        TsugikiError: an option does not fit, or nothing could be measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-small", help="a known shape (--list), 'embedded', a folder, a hub id")
    parser.add_argument("--entries", help="names such as 'a,b' (--list), or 'all'; default: the usual ones")
    parser.add_argument("--batch", type=int, default=4, help="rows per step, or pairs")
    parser.add_argument("--length", type=int, default=512, help="tokens per row, or of each answer with its prompt")
    parser.add_argument("--preference", action="store_true", help="learn from pairs of answers, beside TRL")
    parser.add_argument("--prompt", type=int, help="tokens of the prompt of a pair; default: half of --length")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of consecutive steps of each entry, in turns")
    parser.add_argument("--steps", type=int, default=STEPS, help="counted steps in a block; two more come first")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and plot.svg")
    parser.add_argument("--list", action="store_true", help="list models and entries without measuring")
    given = parser.parse_args(arguments)
    if given.list:
        print_names()
        return
    if given.out is not None:
        check_writable(given.out)
    if given.prompt and not given.preference:
        raise TsugikiError("--prompt is the length of the prompts of --preference; give both")
    prompt = (given.prompt or given.length // 2) if given.preference else 0
    if given.preference and given.length - prompt < _LEAST_ANSWER:
        raise TsugikiError(f"--length {given.length} leaves nothing to the answers after --prompt {prompt}")
    results = run_benchmark(
        choose_entries(given.entries, given.preference),
        Workload(given.model, given.batch, given.length, prompt=prompt),
        given.rounds,
        shlex.join(["python", "-m", "benchmarks.speed", *(sys.argv[1:] if arguments is None else arguments)]),
        lambda line: print(line, file=sys.stderr),
        given.steps,
    )
    if given.out is not None:
        write_results(results, given.out)
    print(results_page(results))


def print_names() -> None:
    """Print the models and the entries that can be named."""
    Table(["model", ""], [[name, summary] for name, summary in known_models().items()]).print()
    rows = []
    for name, entry in {**TRAINING_ENTRIES, **PREFERENCE_ENTRIES}.items():
        default = "default" if name in DEFAULT_ENTRIES else "--preference" if name in PREFERENCE_ENTRIES else ""
        rows.append([name, entry.summary, f"not installed ({entry.install})" if entry.missing else default])
    Table(["entry", "", ""], rows).print()


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
