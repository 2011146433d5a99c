"""Peak memory of a run after some of its steps: `python -m benchmarks.memory.steps --out FOLDER`.

Each case is a `tsugiki train` in a process of its own, on random kana, with rows of 512 tokens. The peak
is reset before the first step, so that loading does not hide what steps take. A folder that holds results gets those
that are missing.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_REPORT = "MEMORY_OF_STEPS"
"""The environment variable that names the file into which a process of a case writes its peaks."""
CASES = (("llama-35m", "bf16"), ("llama-35m", "int8"), ("qwen3-moe-66m", "bf16"))
HEADERS = {
    "en": ["model", "base", "after {} steps", "change"],
    "ja": ["モデル", "ベースモデル", "{} ステップ後", "変化"],
}


def main() -> None:
    """Print a table, and write the figures after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for models, runs and results.json")
    parser.add_argument("--at", type=int, nargs="+", default=[10, 50, 200], help="numbers of steps")
    parser.add_argument("--rows", type=int, default=4, help="of a step")
    parser.add_argument("--cases", nargs="+", help="such as gpt2-small:bf16; default: all")
    parser.add_argument("command", nargs="*", help="the run to measure; used by the benchmark")
    options = parser.parse_args()
    if options.command:
        _run_instrumented(options.command, options.at)
        return
    from benchmarks.figures import Figures
    from benchmarks.memory.planning import save_model

    options.out.mkdir(parents=True, exist_ok=True)
    text, results = options.out / "kana.txt", options.out / "results.json"
    draw = random.Random(0)
    words = ["".join(draw.choices([chr(code) for code in range(0x3042, 0x3094)], k=3)) for _ in range(3000)]
    text.write_text("\n".join("".join(draw.choices(words, k=40)) for _ in range(4000)), encoding="utf-8")
    rows = [list(row) for row in json.loads(results.read_text())["rows"]] if results.exists() else []
    cases = [tuple(case.split(":")) for case in options.cases or [":".join(case) for case in CASES]]
    for shape, dtype in cases:
        if [shape, dtype] in [row[:2] for row in rows]:
            continue
        run, report = options.out / f"{shape}-{dtype}", options.out / "peaks.json"
        shutil.rmtree(run, ignore_errors=True)
        flags = (
            f"--base-dtype {dtype} --batch-size {options.rows} --block-size 512 --learning-rate 1e-4 --validation none"
        )
        flags += f" --validation none --held-out-characters 500 --max-steps {max(options.at)}"
        arguments = ["train", "--model", save_model(shape, options.out / shape), "--data", str(text), *flags.split()]
        at = [str(step) for step in options.at]
        child = [sys.executable, "-m", "benchmarks.memory.steps", "--at", *at, "--", *arguments, "--out", str(run)]
        subprocess.run(child, check=True, stdout=sys.stderr, env={**os.environ, _REPORT: str(report)})
        peaks = json.loads(report.read_text())
        growth = peaks[str(options.at[-1])] / peaks[str(options.at[0])] - 1
        rows.append([shape, dtype, *(f"{peaks[step] / 1e9:.3f} GB" for step in at), f"{growth:+.1%}"])
        print(" | ".join(rows[-1]), flush=True)
        headers = {
            language: [*names[:2], *(names[2].format(step) for step in at), names[3]]
            for language, names in HEADERS.items()
        }
        words_of_command = [word for word in sys.argv[1:] if word != str(options.out)]
        shown = " ".join(["python -m benchmarks.memory.steps", *words_of_command]).replace("--out", "--out runs")
        Figures(headers, rows, shown).write(results)


def _run_instrumented(command: list[str], at: list[int]) -> None:
    """Run a command of Tsugiki in this process, and write the peaks after these steps."""
    from tsugiki.cli import main as command_line
    from tsugiki.cli import train

    import_libraries, peaks = vars(train)["import_libraries"], dict[int, int]()

    def import_and_watch(*names: str) -> None:
        import_libraries(*names)
        from tsugiki.training.step.loop import TrainingLoop
        from tsugiki.training.tools.memory import process_peak, reset_process_peak

        loop_class: Any = TrainingLoop
        train_step = loop_class.train_step

        def watched(loop: Any, stop: bool = False) -> None:
            if loop.progress.step == 0:
                reset_process_peak()
            train_step(loop, stop)
            if loop.progress.step in at:
                peaks[loop.progress.step] = process_peak()
                Path(os.environ[_REPORT]).write_text(json.dumps(peaks))

        loop_class.train_step = watched

    vars(train)["import_libraries"] = import_and_watch
    sys.argv = ["tsugiki", *command]
    command_line.main()


if __name__ == "__main__":
    main()
