"""Time and memory of `tsugiki train` and `tsugiki preview` on very much text.

    python -m benchmarks.memory.large_text --folder large --gigabytes 0.1
    python -m benchmarks.memory.large_text --folder large --gigabytes 10 --stand-in
    python -m benchmarks.memory.large_text --folder large --records 11000000

Writes random text of the given size, in records of 300 to 1,500 characters (2.7 kB on average), 1 % of which are
near-duplicates of others. Then `tsugiki train --max-steps 3` and `tsugiki preview` run on it with the embedded model,
each in a process of its own, the first one with an empty cache of tokens. The folder gets `results-….json`, and the
table is printed.

For each phase: processor time, and the largest memory that the process had allocated (RssAnon; pages of memory-mapped
files are not counted, because the system drops them when memory is short). `--limit` ends a process whose allocated
memory, reserved address space included, exceeds so many gigabytes.

With `--stand-in`, a table replaces the tokenizer (each character of the text is a token) and the hashing of
near-duplicates (by the first 100 characters), which take most of the time and need no memory that grows with the text.

With `--records`, nothing is read or tokenised: what follows is measured on the index of so many records, with random
digests and signatures, and the order of the first epoch is made.
"""

import argparse
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tsugiki.base.loading import load_tokenizer
from tsugiki.base.resolve import EMBEDDED
from tsugiki.data import blocks, store
from tsugiki.data.blocks import Collator
from tsugiki.data.duplicates import SLOTS, near_duplicates
from tsugiki.data.encoding import EncodedRecord, document_end, document_start, encode
from tsugiki.data.records import Record
from tsugiki.data.splits import split_records, split_validation
from tsugiki.io.json import read_json, write_json
from tsugiki.report.table import Table
from tsugiki.training.data import divide, packing, read

SHORTEST, LONGEST = 300, 1500  # characters of a record
AT_ONCE, COPIES = 10_000, 100
OTHER = "everything else"
PHASES: Sequence[tuple[Any, str, str]] = (
    (divide, "content_key", "digest of the text"),
    (read, "open_store", "tokens"),
    (read, "near_duplicate_records", "near-duplicates"),
    (divide, "split_records", "split"),
    (divide, "split_validation", "split"),
    (divide, "_divided", "held-out text and counts"),
    (packing, "pack", "packing"),
    (blocks.Blocks, "fingerprint", "fingerprint of the rows"),
)


def main() -> None:
    """Write the text, and measure both commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float)
    parser.add_argument("--records", type=int)
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--limit", type=float, help="gigabytes")
    parser.add_argument("--command", choices=["train", "preview"], help="measure this process; used by the benchmark")
    given = parser.parse_args()
    if given.records:
        measure_index(given.records, given.folder)
        return
    data, out = given.folder / f"{given.gigabytes:g}GB.jsonl", given.folder / f"{given.gigabytes:g}GB"
    if given.command:
        measure(given.command, data, out, given.stand_in, given.limit)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not data.exists():
        write_text(data, round(given.gigabytes * 1e9))
    for command in ("train", "preview"):
        worker = [sys.executable, "-m", "benchmarks.memory.large_text", *sys.argv[1:], "--command", command]
        subprocess.run(worker, check=True, env={**os.environ, "XDG_CACHE_HOME": str(out / "cache")})
    results = {command: read_json(out / f"{command}.json") for command in ("train", "preview")}
    write_json(given.folder / f"results-{given.gigabytes:g}GB.json", results)
    names = list(dict.fromkeys(name for phases in results.values() for name in phases))
    rows = [[name, *(_cell(results[command].get(name)) for command in results)] for name in names]
    print(Table([f"{given.gigabytes:g} GB", *results], rows).to_markdown())


def _cell(phase: dict[str, float] | None) -> str:
    return "" if phase is None else f"{phase['processor']:.1f} s, {phase['allocated']:.2f} GB"


def characters() -> dict[int, int]:
    """Return the code points of kana and kanji that are one token of the embedded model, with the token."""
    texts = [chr(code) for code in (*range(0x3041, 0x3094), *range(0x4E00, 0x9FA0))]
    rows = encode(load_tokenizer(EMBEDDED), texts)
    return {ord(text): ids[0] for text, ids in zip(texts, rows, strict=True) if len(ids) == 1}


def write_text(path: Path, size: int) -> None:
    """Write a `.jsonl` file of this many bytes."""
    known, generator = np.array(list(characters()), "<u4"), np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        while path.stat().st_size < size:
            ends = np.cumsum(generator.integers(SHORTEST, LONGEST + 1, AT_ONCE)).tolist()
            chosen = generator.integers(len(known), size=ends[-1], dtype=np.uint16)
            text = known[chosen].tobytes().decode("utf-32-le")
            texts = [text[start:end] for start, end in pairwise([0, *ends])]
            texts[-COPIES:] = [f"{text[:-1]}。" for text in texts[:COPIES]]  # a small edit
            file.writelines(f'{{"text": "{text}"}}\n' for text in texts)


def measure(command: str, data: Path, out: Path, stand_in: bool, limit: float | None) -> None:
    """Run a command of Tsugiki in this process, and write the time and the memory of its phases."""
    if stand_in:
        use_stand_ins()
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (round(limit * 1e9),) * 2)
    watch = Watch()
    arguments = ["--data", str(data), "--model", EMBEDDED]
    if command == "train":
        arguments += ["--out", str(out / "run"), "--max-steps", "3", "--overwrite"]
    sys.argv = ["tsugiki", command, *arguments]
    from tsugiki.cli.main import main as tsugiki

    try:
        tsugiki()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        watch.end()
        write_json(out / f"{command}.json", watch.phases)


def measure_index(records: int, folder: Path) -> None:
    """Measure what a run does with the index of its tokens, and print the table."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "signatures.bin").open("wb") as signatures, (folder / "digests.bin").open("wb") as digests:
        for start in range(0, records, AT_ONCE):
            rows = generator.integers(1 << 32, size=(min(AT_ONCE, records - start), SLOTS), dtype=np.uint32)
            rows[-COPIES:] = rows[:COPIES]
            signatures.write(rows.tobytes())
            digests.write(generator.bytes(len(rows) * store.DIGEST_BYTES))
    lengths = generator.integers(SHORTEST, LONGEST + 1, records)
    offsets = np.append(0, np.cumsum(lengths))
    with (folder / "tokens.bin").open("wb") as tokens:
        tokens.truncate(2 * int(offsets[-1]))  # no token is read
    index = store.RecordIndex(
        characters=lengths,
        digests=np.memmap(folder / "digests.bin", np.uint8, "r").reshape(records, -1),
        signatures=np.memmap(folder / "signatures.bin", np.uint32, "r").reshape(records, -1),
        splittable=np.ones(records, bool),
        questions=np.zeros(records, np.uint64),
        answers=np.zeros(records, np.uint64),
        sources=range(records),  # type: ignore[arg-type]
        fields=range(records),  # type: ignore[arg-type]
    )
    ids = np.memmap(folder / "tokens.bin", np.uint16, "r")
    watch = Watch()
    groups = watch.watched(near_duplicates, "near-duplicates")(index.signatures)
    held_out = watch.watched(split_records, "split")(index, 0.1, 0, groups)
    train = np.setdiff1d(np.arange(records), held_out)
    validation = watch.watched(split_validation, "split")(index, train, 0.05, 0, groups)
    train = np.setdiff1d(train, validation)
    tokens_of_texts = store.TokenStore(index, ids, ids, offsets, "digest")
    packed = watch.watched(blocks.pack, "packing")(tokens_of_texts, train, 512, 0)
    packed.fingerprint()
    blocks.StepBatches(packed, Collator("position_ids"), 16, 0).rows(0)
    watch.end()
    print(f"{len(groups):,} groups, {len(packed):,} rows of {len(packed.lengths):,} segments")
    cells = [[name, _cell(phase)] for name, phase in watch.phases.items()]
    print(Table(["phase", f"{records:,} records"], cells).to_markdown())


def use_stand_ins() -> None:
    """Replace the tokenizer and the signatures by tables."""
    token_of = np.zeros(0x110000, np.int64)
    for code, token in characters().items():
        token_of[code] = token
    multipliers = np.random.default_rng(0).integers(1 << 63, size=SLOTS, dtype=np.uint64) | np.uint64(1)

    def encode_records(tokenizer: Any, records: Sequence[Record], turns: str) -> list[EncodedRecord]:
        start, end = document_start(tokenizer), document_end(tokenizer)
        texts = [np.frombuffer(record.text.encode("utf-32-le"), "<u4") for record in records]
        rows = [np.concatenate([[start], token_of[codes], [end]]) for codes in texts]
        return [EncodedRecord(ids, [False] + [True] * (len(ids) - 1)) for ids in rows]  # type: ignore[arg-type]

    def signatures(texts: Sequence[str]) -> Any:
        hashes = np.array([hash(text[:100]) & 0xFFFFFFFFFFFFFFFF for text in texts], np.uint64)
        return ((hashes[:, None] * multipliers) >> np.uint64(32)).astype(np.uint32)

    setattr(store, "encode_records", encode_records)  # noqa: B010
    setattr(store, "signatures", signatures)  # noqa: B010


class Watch:
    """Measures time and memory of the phases of this process."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self.now = OTHER
        self.started = time.monotonic(), time.process_time()
        self.ended = threading.Event()
        for place, name, phase in PHASES:
            setattr(place, name, self.watched(getattr(place, name), phase))
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Stop, and count the time since the last phase."""
        self._change(OTHER)
        self.ended.set()
        self.thread.join()

    def watched(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """Return a function that does the same as a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            before = self._change(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._change(before)

        return call

    def _change(self, phase: str) -> str:
        before, self.now = self.now, phase
        now = time.monotonic(), time.process_time()
        for name, new, old in zip(("seconds", "processor"), now, self.started, strict=True):
            self._of(before)[name] += new - old
        self.started = now
        return before

    def _of(self, phase: str) -> dict[str, float]:
        return self.phases.setdefault(phase, {"seconds": 0.0, "processor": 0.0, "allocated": 0.0, "resident": 0.0})

    def _sample(self) -> None:
        while not self.ended.wait(0.02):
            lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            phase = self._of(self.now)
            for name, field in (("allocated", "RssAnon"), ("resident", "VmRSS")):
                phase[name] = max(phase[name], int(lines[field].split()[0]) * 1024 / 1e9)


if __name__ == "__main__":
    main()
