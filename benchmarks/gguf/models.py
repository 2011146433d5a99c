"""Compare adapters merged into GGUF files in llama.cpp with Transformers: `python -m benchmarks.gguf.models`.

    python -m benchmarks.gguf.models embedded runs/akutagawa
    python -m benchmarks.gguf.models smollm2.gguf runs/support --prompt "The garden"

The adapter is merged with `tsugiki export --merged` in each dtype. The table compares, on the same token ids, the
logits of llama.cpp with those of Transformers in float32 with the adapter grafted, the top token at each position, and
40 greedy tokens; the row "base" is the base's file without an adapter. Requires llama-cpp-python.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from torch import Tensor

from benchmarks.figures import Figures
from benchmarks.gguf.llama_cpp_outputs import common_prefix, greedy, llama_cpp_outputs
from benchmarks.gguf.llama_cpp_outputs import logits as logits_of
from tsugiki import load_adapter
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.resolve import gguf_of_base
from tsugiki.data.encoding import document_start, encode
from tsugiki.dtypes import GgufDtype

_DTYPES = get_args(GgufDtype)
_HEADERS = {
    "en": [
        *("dtype", "MB", "largest difference of a logit", "relative to the largest logit", "KL, nats"),
        *("top token agrees", "equal greedy tokens", "seconds", "peak MB"),
    ],
    "ja": [
        *("データ型", "MB", "ロジットの最大差", "最大のロジットに対する比", "KL（nat）"),
        *("最上位トークンの一致率", "貪欲生成で一致したトークン", "秒", "最大メモリ（MB）"),
    ],
}


def main() -> None:
    """Print the table and the generated texts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base-gguf", type=Path, help="GGUF file of the base, if it is not known")
    parser.add_argument("--prompt", default="吾輩は猫である。名前はまだ無い。")
    parser.add_argument("--dtypes", nargs="+", default=list(_DTYPES), choices=_DTYPES)
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    ids = [document_start(tokenizer), *encode(tokenizer, [options.prompt])[0]]
    model = load_adapter(load_model(options.model), options.adapter)
    ours = logits_of(model, ids)
    text = greedy(model, ids)
    del model
    rows, texts = [], [("Transformers", text, "")]
    with TemporaryDirectory() as folder:
        files = {dtype: Path(folder) / f"{dtype}.gguf" for dtype in options.dtypes}
        base = gguf_of_base(options.model, options.base_gguf and str(options.base_gguf))
        for name, path in (files | {"base": base}).items():
            exported = _export(options.adapter, base, path, name) if name in files else None
            theirs, generated = llama_cpp_outputs(path, ids, ids)
            rows.append(
                [
                    name,
                    f"{path.stat().st_size / 1e6:,.1f}",
                    *_compare(ours, theirs),
                    f"{common_prefix(text, generated)} of {len(text)}",
                    *((f"{exported.seconds:.0f}", f"{exported.peak / 1e6:,.0f}") if exported else ("–", "–")),
                ]
            )
            texts.append((name, generated, exported.output if exported else ""))
            if exported:
                path.unlink()
    figures = Figures(_HEADERS, rows, shlex.join(["python", "-m", "benchmarks.gguf.models", *sys.argv[1:]]))
    print(f"{options.model} with {options.adapter}, {len(ids)} tokens\n")
    print(figures.table("en").to_markdown())
    for name, generated, output in texts:
        print(f"{name}: {tokenizer.decode(generated)!r}" + (f"\n    {output}" if output else ""))
    if options.out:
        figures.write(options.out)


@dataclass(frozen=True)
class _Export:
    """One run of `tsugiki export`."""

    output: str
    seconds: float
    peak: float
    """Peak memory in bytes, mapped pages of the model's files included."""


def _export(adapter: Path, base: Path, path: Path, dtype: str) -> _Export:
    """Run `tsugiki export` in a new process, and return its output, time and peak memory."""
    command = [sys.executable, "-m", "tsugiki", "export", str(adapter), "--merged", "--base-gguf", str(base)]
    command += ["--gguf", str(path), "--dtype", dtype]
    start = time.perf_counter()
    output = path.with_suffix(".txt")
    with output.open("w") as file:
        process = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        )
        _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return _Export(output.read_text().splitlines()[0], time.perf_counter() - start, usage.ru_maxrss * 1e3)


def _compare(ours: Tensor, theirs: Tensor) -> list[str]:
    """Return the largest logit difference, absolute and relative, the mean KL, and the share of equal top tokens."""
    a, b = ours.double(), theirs.double()
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    largest = float((a - b).abs().max())
    return [
        f"{largest:.2g}",
        f"{largest / float(a.abs().max()):.1e}",
        f"{float((p.exp() * (p - q)).sum(-1).mean()):.1e}",
        f"{float((a.argmax(-1) == b.argmax(-1)).double().mean()):.0%}",
    ]


if __name__ == "__main__":
    main()
