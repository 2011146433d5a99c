"""Whole models exported to GGUF, in llama.cpp beside Transformers: `python -m benchmarks.gguf_models`.

    python -m benchmarks.gguf_models embedded --adapter runs/akutagawa
    python -m benchmarks.gguf_models SMOLLM2_FOLDER --original SmolLM2-135M-Instruct.Q4_1.gguf --prompt "The garden"

The model is exported once in each way of storing it, by the command line. Then, on the same token ids: the logits of
llama.cpp beside those of Transformers in float32 (with the adapter grafted, not merged, where there is one), the
likeliest token of each position, and 40 tokens drawn greedily by both. Needs llama-cpp-python.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from benchmarks.beside_llama_cpp import alike, greedy, llama
from benchmarks.beside_llama_cpp import logits as logits_of
from tsugiki import load_adapter
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.bench.figures import Figures
from tsugiki.bench.table import markdown
from tsugiki.data.encoding import document_start, encode
from tsugiki.export.model_file import STORED

_HEADERS = {
    "en": [
        *("file", "MB", "largest difference of a logit", "of the largest logit", "KL, nats", "same top token"),
        *("same tokens, greedily", "seconds", "peak MB"),
    ],
    "ja": [
        *("ファイル", "MB", "ロジットの差の最大", "最大のロジットに対して", "KL（nat）", "最上位が同じ"),
        *("貪欲に同じトークン", "秒", "最大メモリ MB"),
    ],
}


def main() -> None:
    """Print the table and the texts, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--original", type=Path, help="the GGUF file that the model came from, measured as well")
    parser.add_argument("--prompt", default="吾輩は猫である。名前はまだ無い。")
    parser.add_argument("--stored", nargs="+", default=list(STORED), choices=STORED)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    ids = [document_start(tokenizer), *encode(tokenizer, [options.prompt])[0]]
    model = load_model(options.model)
    if options.adapter:
        load_adapter(model, options.adapter)
    ours = logits_of(model, ids)
    text = greedy(model, ids)
    del model
    rows, texts = [], [("Transformers", text, "")]
    with TemporaryDirectory() as folder:
        files = {stored: Path(folder) / f"{stored}.gguf" for stored in options.stored}
        for name, path in (files | ({"original": options.original} if options.original else {})).items():
            exported = _export(options.model, options.adapter, path, name) if name in files else None
            theirs, drawn = llama(path, ids, ids)
            rows.append(
                [
                    name,
                    f"{path.stat().st_size / 1e6:,.1f}",
                    *_compare(ours, theirs),
                    f"{alike(text, drawn)} of {len(text)}",
                    *((f"{exported.seconds:.0f}", f"{exported.peak / 1e6:,.0f}") if exported else ("–", "–")),
                ]
            )
            texts.append((name, drawn, exported.said if exported else ""))
            if exported:
                path.unlink()
    figures = Figures(_HEADERS, rows, shlex.join(["python", "-m", "benchmarks.gguf_models", *sys.argv[1:]]))
    print(f"{options.model}{f' with {options.adapter}' if options.adapter else ''}, {len(ids)} tokens\n")
    print(markdown(figures.table("en")))
    for name, drawn, said in texts:
        print(f"{name}: {tokenizer.decode(drawn)!r}" + (f"\n    {said}" if said else ""))
    if options.out:
        figures.write(options.out)


@dataclass(frozen=True)
class _Exported:
    """One call of the command line."""

    said: str
    seconds: float
    peak: float
    """Bytes of memory, the pages of the model's files among them."""


def _export(model: str, adapter: Path | None, path: Path, stored: str) -> _Exported:
    """Export by the command line, in a process of its own: what it says, how long, how much memory."""
    command = [sys.executable, "-m", "tsugiki", "export", "--model", model, "--gguf", str(path)]
    command += ["--dtype", stored, *([str(adapter), "--merged"] if adapter else [])]
    begin = time.perf_counter()
    said = path.with_suffix(".txt")
    with said.open("w") as file:
        process = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 1)]
        )
        _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return _Exported(said.read_text().splitlines()[1], time.perf_counter() - begin, usage.ru_maxrss * 1e3)


def _compare(ours: Tensor, theirs: Tensor) -> list[str]:
    """The largest difference of a logit, plain and as a part of the largest logit, the mean KL, the same top tokens."""
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
