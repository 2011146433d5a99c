"""`tsugiki serve` beside llama.cpp's server and `transformers serve`: `python -m benchmarks.serving.peers MODEL.gguf`.

All serve the same GGUF file of a base, whose weights are written in bfloat16 (and in Q8_0 for llama.cpp, beside
int8 and nf4-int8), with LoRA adapters (r 8, the default target layers), on one thread. Requests arrive at once, with
prompts of 32 random tokens, and get 32 new tokens each, greedily, as whole answers and without a prefix cache. Blocks
of the contenders alternate; the table has medians of the rounds.

`--llama-server` names the program of llama.cpp, compiled for this processor; `--transformers` the Python of an
environment with `pip install 'transformers[serving]'`. The latter serves no adapters and takes texts only: it is asked
for the base, with texts of about as many tokens.
"""

import argparse
import asyncio
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import torch

from benchmarks.figures import Figures
from benchmarks.serving.served import Served, prompt, server
from tsugiki import LoraConfig, graft, save_adapter, trainable_parameters, ungraft
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.report.table import Table

HEADERS = {
    "en": ["server", "requests", "tokens for a second of processor time", "tokens for a second", "seconds"],
    "ja": ["サーバー", "リクエスト", "プロセッサ時間 1 秒あたりのトークン", "1 秒あたりのトークン", "秒"],
}
_PROMPT, _NEW = 32, 32
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Contender:
    """A server, and how it is asked."""

    name: str
    command: Sequence[str]
    model: str
    """What requests call the base."""
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of each request, besides those that all have."""
    adapters: str = "model"
    """How a request names an adapter: "model" by its name, "lora" by its number, "" not at all."""
    texts: bool = False
    """Whether prompts must be texts."""


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--llama-server", help="the program; several words, such as a script with its interpreter, too")
    parser.add_argument("--transformers", type=Path, help="the Python of an environment with transformers[serving]")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        contenders = _prepare(options, Path(folder))
        rows = [list(row) for row in _measure(contenders, options.model, options.requests, options.rounds)]
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        command = shlex.join(["python", "-m", "benchmarks.serving.peers", *sys.argv[1:]])
        Figures(HEADERS, rows, command).write(options.out)


def _prepare(options: Any, place: Path) -> list[Contender]:
    """Write the base and the adapters in the forms that the contenders read, and return these."""
    library, most = place / "library", max(options.requests)
    base = load_model(str(options.model), "bf16")
    for number in range(most):
        graft(base, LoraConfig(r=8, lora_alpha=16))
        with torch.no_grad():
            for parameter in trainable_parameters(base).values():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        save_adapter(base, library / _adapter(number))
        ungraft(base)
    name = options.model.name
    contenders = [
        Contender(
            f"tsugiki serve, {dtype}",
            [
                *(sys.executable, "-m", "tsugiki", "serve", "--model", str(options.model), "--dtype", dtype),
                *("--port", "{port}", "--prefix-memory", "0", "--max-batch", str(most), "--max-wait", "600"),
            ],
            name,
            {"TSUGIKI_ADAPTERS": str(library), "TSUGIKI_LANG": "en"},
            {"ignore_eos": True},
        )
        for dtype in ("bf16", "int8", "nf4-int8")
    ]
    if options.llama_server:
        loras = []
        for number in range(most):
            loras.append(place / f"{_adapter(number)}.gguf")
            _export(str(library / _adapter(number)), "--gguf", str(loras[-1]), "--model", str(options.model))
        for dtype in ("bf16", "q8_0"):
            file = place / f"base-{dtype}.gguf"
            _export("--model", str(options.model), "--gguf", str(file), "--dtype", dtype, "--allow-tokenizer-mismatch")
            contenders.append(
                Contender(
                    f"llama.cpp's server, {dtype}",
                    [
                        *(*shlex.split(options.llama_server), "--model", str(file), "--port", "{port}"),
                        *("--lora", ",".join(map(str, loras)), "--lora-init-without-apply"),
                        *("--parallel", str(most), "--ctx-size", str(most * 128)),
                        *("--threads", "1", "--threads-batch", "1"),
                    ],
                    "base",
                    fields={"ignore_eos": True, "cache_prompt": False},
                    adapters="lora",
                )
            )
    if options.transformers:
        folder = place / "folder"
        base.save_pretrained(folder)
        load_tokenizer(str(options.model)).save_pretrained(folder)
        command = [str(options.transformers), "-m", "transformers.cli.transformers", "serve", str(folder)]
        contenders.append(
            Contender(
                "transformers serve, bf16, continuous batching",
                [*command, "--continuous-batching", "--device", "cpu", "--dtype", "bfloat16", "--port", "{port}"],
                str(folder),
                _ONE_THREAD,
                adapters="",
                texts=True,
            )
        )
    return contenders


def _export(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "tsugiki", "export", *arguments], check=True, stdout=subprocess.DEVNULL)


def _adapter(number: int) -> str:
    return f"adapter-{number}"


def _measure(
    contenders: Sequence[Contender], model: Path, counts: Sequence[int], rounds: int
) -> Iterator[tuple[str, str, str, str, str]]:
    tokenizer = load_tokenizer(str(model))
    with ExitStack() as running:
        started = [(one, running.enter_context(server(one.command, one.environment))) for one in contenders]
        cases = [
            (one, served, count, adapters)
            for count in counts
            for adapters in (False, True)
            for one, served in started
            if one.adapters or not adapters
        ]
        found: list[list[tuple[float, float, float]]] = [[] for _ in cases]
        for counted in [False, *[True] * rounds]:
            for (one, served, count, adapters), results in zip(cases, found, strict=True):
                result = _together(one, served, tokenizer, count, adapters)
                if counted:
                    results.append(result)
    for (one, _served, count, adapters), results in zip(cases, found, strict=True):
        cpu, wall, seconds = (statistics.median(values) for values in zip(*results, strict=True))
        asked = f"{count}, each on an adapter of its own" if adapters else f"{count} on the base"
        yield one.name, asked, f"{cpu:,.0f}", f"{wall:,.0f}", f"{seconds:.2f}"


def _together(one: Contender, served: Served, tokenizer: Any, count: int, adapters: bool) -> tuple[float, float, float]:
    """Send requests at once; return tokens for a second of processor time, tokens for a second, and seconds."""
    generator = random.Random(0)
    bodies = [
        _body(one, tokenizer, prompt(generator, _PROMPT), number if adapters else None) for number in range(count)
    ]

    async def run() -> int:
        async with httpx2.AsyncClient(base_url=served.url, timeout=600) as client:
            answers = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
        for answer in answers:
            answer.raise_for_status()
        return sum(int(answer.json()["usage"]["completion_tokens"]) for answer in answers)

    cpu, start = served.cpu_seconds, time.perf_counter()
    new = asyncio.run(run())
    seconds = time.perf_counter() - start
    return new / max(served.cpu_seconds - cpu, 0.01), new / seconds, seconds


def _body(one: Contender, tokenizer: Any, tokens: list[int], adapter: int | None) -> dict[str, Any]:
    body = {"model": one.model, "max_tokens": _NEW, "temperature": 0.0, **one.fields}
    body["prompt"] = tokenizer.decode(tokens) if one.texts else tokens
    if adapter is not None and one.adapters == "model":
        body["model"] = _adapter(adapter)
    elif one.adapters == "lora":
        # A list without any adapter applies all of them; those that are not listed are not applied.
        body["lora"] = [{"id": 0, "scale": 0.0} if adapter is None else {"id": adapter, "scale": 1.0}]
    return body


if __name__ == "__main__":
    main()
