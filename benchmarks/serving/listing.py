"""Measure how long a large library takes to list: `python -m benchmarks.serving.listing`.

The library holds copies of one adapter (LoRA of rank 8 on the default targets of the embedded model, after a run of two
steps), which share its file of weights by a link. Figures are seconds of processor time of this process: what
`tsugiki adapters list` reads and prints as a table, without imports; with an empty cache, again, and after one adapter
was changed, whose result must be the new one. The last figures are those of the whole command.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsugiki.adapters.library import read_library
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.report.adapter import library_table
from tsugiki.report.table import Table
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import RunConfig


def main() -> None:
    """Build the library, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        library = Path(folder) / "library"
        os.environ.update(XDG_CACHE_HOME=str(Path(folder) / "cache"), TSUGIKI_ADAPTERS=str(library))
        run, texts = Path(folder) / "run", Path(folder) / "text.txt"
        texts.write_text("枝を折る。" * 2000, encoding="utf-8")
        settings = {"model": "embedded", "data": str(texts), "out": str(run), "max_steps": 2, "lora": {"r": 8}}
        train(RunConfig.model_validate(settings))
        shutil.rmtree(run / "checkpoints")
        library.mkdir()
        for number in range(options.adapters):
            shutil.copytree(run, library / f"adapter-{number}", ignore=shutil.ignore_patterns(ADAPTER_FILE, "*.html"))
            os.link(run / ADAPTER_FILE, library / f"adapter-{number}" / ADAPTER_FILE)
        time.sleep(3)  # what was changed a moment ago is not kept
        rows = [[what, f"{seconds:.2f}"] for what, seconds in _measured(library)]
    print(Table([f"{options.adapters:,} adapters", "processor seconds"], rows).to_markdown())


def _measured(library: Path) -> list[tuple[str, float]]:
    found = []

    def timed(what: str, action: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = action()
        found.append((what, time.process_time() - begun))
        return result

    timed("read, nothing in the cache", lambda: read_library(library))
    entries = timed("read again", lambda: read_library(library))
    timed("table with figures of runs, nothing in the cache", lambda: library_table(entries))
    table = timed("table again", lambda: library_table(entries))
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, before = nowhere, sys.stdout
        timed("print the table", table.print)
        sys.stdout = before
    config = library / "adapter-7" / ADAPTER_CONFIG_FILE
    changed = config.read_text(encoding="utf-8").replace('"embedded"', '"another"')
    config.write_text(changed, encoding="utf-8")
    entries = timed("read after a change of one", lambda: read_library(library))
    names = [entry.name for entry in entries if entry.info and entry.info.base.name == "another"]
    assert names == ["adapter-7"], names
    for what in ("first", "second"):
        before_command = _of_children()
        subprocess.run([sys.executable, "-m", "tsugiki", "adapters", "list"], check=True, stdout=subprocess.DEVNULL)
        found.append((f"`tsugiki adapters list`, {what} time", _of_children() - before_command))
    return found


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
