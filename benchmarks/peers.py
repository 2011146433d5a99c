"""`tsugiki bench` with more entries: LitGPT and MLX-LM, which no extra of Tsugiki installs, and full fine-tuning.

python -m benchmarks.peers --entries litgpt,peft-bf16,tsugiki-bf16 --model smollm2-135m --length 256 --out results
"""

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks import import_in_children
from tsugiki.bench.bench import run_benchmark
from tsugiki.bench.entries import TRAINING_ENTRIES, BenchmarkEntry
from tsugiki.bench.results import results_page, write_results
from tsugiki.bench.workload import Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable

_MORE = "benchmarks.more_entries"
ENTRIES = {
    **TRAINING_ENTRIES,
    "peft-bf16-autocast": BenchmarkEntry(
        "as peft-bf16, with bf16=True (autocast): A and B are multiplied in bfloat16 too",
        f"{_MORE}:peft_bf16_autocast",
        "bf16",
        bytes_per_parameter=2,
        requires=("peft",),
    ),
    "trl-checkpointed": BenchmarkEntry(
        "as trl, with gradient checkpointing (TRL's default)",
        f"{_MORE}:trl_checkpointed",
        "bf16",
        bytes_per_parameter=2,
        requires=("peft", "trl", "datasets"),
    ),
    **{
        f"{tool}-full-{dtype}": BenchmarkEntry(
            f"full fine-tuning by {tool}, matrix products in {dtype}",
            f"{_MORE}:{tool}_full_{dtype}",
            dtype,
            bytes_per_parameter=18 if (tool, dtype) == ("tsugiki", "bf16") else 16,
            full=True,
        )
        for tool in ("trainer", "tsugiki")
        for dtype in ("fp32", "bf16")
    },
    "litgpt": BenchmarkEntry(
        "LitGPT's finetune_lora, bf16-true",
        "benchmarks.litgpt_entry:litgpt",
        "bf16",
        bytes_per_parameter=2,
        requires=("litgpt", "lightning"),
        install="pip install --no-deps litgpt lightning torchmetrics lightning-utilities jsonargparse docstring-parser",
    ),
    "mlx-lm": BenchmarkEntry(
        "mlx_lm.lora, bfloat16",
        "benchmarks.mlx_entry:mlx_lm",
        "bf16",
        bytes_per_parameter=2,
        requires=("mlx", "mlx_lm"),
        install="pip install 'mlx-lm[cpu]'",
    ),
}


def main() -> None:
    """Measure the entries, print the table and write the results."""
    import_in_children()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="litgpt,mlx-lm,peft-bf16,tsugiki-bf16", help=f"from {', '.join(ENTRIES)}")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=4, help="rows per step")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of consecutive steps of each entry")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and plot.svg")
    options = parser.parse_args()
    names = options.entries.split(",")
    if unknown := [name for name in names if name not in ENTRIES]:
        parser.error(f"unknown entry {', '.join(unknown)}; choose from {', '.join(ENTRIES)}")
    if options.out:
        check_writable(options.out)
    results = run_benchmark(
        {name: ENTRIES[name] for name in names},
        Workload(options.model, options.batch, options.length),
        options.rounds,
        shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        lambda line: print(line, file=sys.stderr),
    )
    if options.out:
        write_results(results, options.out)
    print(results_page(results))


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
