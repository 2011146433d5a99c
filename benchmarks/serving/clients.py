"""Measure `tsugiki serve` as clients see it: `python -m benchmarks.serving.clients speed idle load`.

Each measurement starts servers of its own, as whole processes on 127.0.0.1, with a base of a known shape with random
weights, or a file or folder, and with LoRA adapters (r 8, the default target layers) in a library.

- `speed`: tokens for each second of the server's processor time and for each second of wall time, of requests that
  arrive at once: on the base, each on an adapter of its own, and in turns; beside one static batch by `generate` in
  this process. Blocks alternate; ratios are medians of the ratios of each round. Also the time to the first token
  beside a long prompt, and the first answer of an adapter that is not in memory.
- `forms`: the same with the answers held to a JSON schema, and without.
- `library`: requests on 32 adapters that are in memory, of a library of 2,000, beside a library of 32.
- `idle`: processor time and wake-ups of a server that nobody asks.
- `load`: many clients at once, of which some go away, send malformed bodies or prompts that are too long, while
  adapters are loaded and unloaded; memory, threads and open files of the server, before and after.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import torch

from benchmarks.figures import Figures
from benchmarks.models import SHAPES, build
from benchmarks.serving.served import Answers, Served, messages, prompt, server
from tsugiki import LoraConfig, graft, load_adapter, mixed_batch, save_adapter, trainable_parameters, ungraft
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.report.table import Table

HEADERS = {"en": ["model", "measurement", "figure"], "ja": ["モデル", "測定項目", "値"]}
_PROMPT, _NEW = 32, 32
_HOT, _LIBRARY = 32, 2000
_PATIENCE = "600"  # seconds; all adapters are loaded at once at first, which takes long on a busy machine
_MALFORMED: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[1]",
    b'{"model": "base"}',
    b'{"model": 1, "prompt": "a"}',
    b'{"model": "nobody", "prompt": "a"}',
    b'{"model": "base", "prompt": "a", "temperature": "hot"}',
    b'{"model": "base", "prompt": "a", "n": 1000000}',
    b'{"a":' * 2000,
    b"\xff" * 1000,
)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["speed", "forms", "library", "idle", "load"])
    parser.add_argument("--models", nargs="+", default=["gpt2-small"], help="shapes, files or folders")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32", "int8", "nf4"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200, help="of the load")
    parser.add_argument("--seconds", type=float, default=300, help="of the load")
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        with TemporaryDirectory() as folder:
            place = Path(folder)
            model = _prepare(name, place, options.dtype)
            for what in options.what:
                for label, figure in _measure(what, model, place, options):
                    rows.append([Path(name).stem, label, figure])
                    print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        command = shlex.join(["python -m benchmarks.serving.clients", *sys.argv[1:]]).replace("'", "")
        Figures(HEADERS, rows, command).write(options.out)


def _measure(what: str, model: str, place: Path, options: Any) -> Iterator[tuple[str, str]]:
    if what == "speed":
        yield from _speed(model, place, options.dtype, options.rounds)
    elif what == "forms":
        yield from _forms(model, place, options.dtype, options.rounds)
    elif what == "library":
        yield from _large_library(model, place, options.dtype, options.rounds)
    elif what == "idle":
        yield from _idle(model, place, options.dtype)
    else:
        yield from _load(model, place, options.dtype, options.clients, options.seconds)


def _prepare(name: str, place: Path, dtype: str) -> str:
    """Save the model, if it is a shape, and 32 adapters in the library; return what `--model` gets."""
    model = name
    if name in SHAPES:
        model = str(place / name)
        build(name, torch.bfloat16).save_pretrained(model)
        load_tokenizer("embedded").save_pretrained(model)
    base = load_model(model, "bf16")
    for number in range(_HOT):
        graft(base, LoraConfig(r=8, lora_alpha=16))
        with torch.no_grad():
            for parameter in trainable_parameters(base).values():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        save_adapter(base, place / "library" / _adapter(number))
        ungraft(base)
    return model


def _adapter(number: int) -> str:
    return f"adapter-{number}"


@contextmanager
def _server(model: str, library: Path, dtype: str, *arguments: str) -> Iterator[Served]:
    options = ["--model", model, "--dtype", dtype, "--port", "{port}", "--prefix-memory", "0", *arguments]
    environment = {"TSUGIKI_ADAPTERS": str(library), "TSUGIKI_LANG": "en"}
    with server([sys.executable, "-m", "tsugiki", "serve", *options], environment) as served:
        yield served


async def _ask(
    client: httpx2.AsyncClient, answers: Answers, model: str, tokens: Sequence[int], new: int, **form: Any
) -> None:
    """Ask for tokens as a stream, as `vllm bench serve` does, and note what comes; a field names a form, if any."""
    body = {
        "model": model,
        "prompt": list(tokens),
        "max_tokens": new,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        **form,
    }
    start = time.perf_counter()
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answers.statuses[str(answer.status_code)] += 1
        async for message in messages(answer):
            if message["choices"] and len(answers.first) < answers.statuses["200"]:
                answers.first.append(time.perf_counter() - start)
            if message.get("usage"):
                answers.tokens += message["usage"]["completion_tokens"]


def _together(served: Served, models: Sequence[str], new: int = _NEW, **form: Any) -> tuple[float, float]:
    """Send a request on each of the models at once; return tokens for a second of processor time, and of wall time."""

    async def run() -> Answers:
        answers, generator = Answers(), random.Random(0)
        async with httpx2.AsyncClient(base_url=served.url, timeout=600) as client:
            asked = (_ask(client, answers, model, prompt(generator, _PROMPT), new, **form) for model in models)
            await asyncio.gather(*asked)
        return answers

    cpu, start = served.cpu_seconds, time.perf_counter()
    answers = asyncio.run(run())
    assert answers.statuses.keys() == {"200"}, answers.statuses
    return answers.tokens / (served.cpu_seconds - cpu), answers.tokens / (time.perf_counter() - start)


def _in_turns(served: Served, models: Sequence[str]) -> tuple[float, float]:
    """Return what `_together` does, of one request after the other."""
    speeds = [_together(served, [model]) for model in models]
    return statistics.harmonic_mean([cpu for cpu, _ in speeds]), statistics.harmonic_mean([wall for _, wall in speeds])


def _static(model: Any, names: Sequence[str]) -> tuple[float, float]:
    """Return what `_together` does, of one batch by `generate` in this process."""
    generator = random.Random(0)
    ids = torch.tensor([prompt(generator, _PROMPT) for _ in names])
    cpu, start = time.process_time(), time.perf_counter()
    with torch.no_grad(), with_one_thread(), mixed_batch(model, names):
        model.generate(ids, do_sample=False, min_new_tokens=_NEW, max_new_tokens=_NEW, pad_token_id=0)
    tokens = len(names) * _NEW
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - start)


def _speed(model: str, place: Path, dtype: str, rounds: int) -> Iterator[tuple[str, str]]:
    base, library = Path(model).name if Path(model).exists() else model, place / "library"
    adapters = [_adapter(number) for number in range(_HOT)]
    with (
        _server(model, library, dtype, "--max-batch", "32", "--max-wait", _PATIENCE) as served,
        _server(model, library, dtype) as empty,
    ):
        in_process = load_model(model, dtype)  # type: ignore[arg-type]
        for name in adapters[:8]:
            load_adapter(in_process, library / name, name)
        _together(served, adapters, 2)
        _together(empty, [base], 2)
        cases: dict[str, Callable[[], tuple[float, float]]] = {
            "8 on the base, no adapter loaded": lambda: _together(empty, [base] * 8),
            "8 on the base": lambda: _together(served, [base] * 8),
            "8 on 8 adapters": lambda: _together(served, adapters[:8]),
            "8 adapters in turns": lambda: _in_turns(served, adapters[:8]),
            "8 on 8 adapters, one static batch": lambda: _static(in_process, adapters[:8]),
            "32 on the base": lambda: _together(served, [base] * 32),
            "32 on 32 adapters": lambda: _together(served, adapters),
        }
        found = _in_rounds(cases, rounds)
        yield from _speeds(found)
        for name, part, whole in (
            ("adapters in memory beside none, on the base", "8 on the base", "8 on the base, no adapter loaded"),
            ("8 adapters beside the base", "8 on 8 adapters", "8 on the base"),
            ("32 adapters beside the base", "32 on 32 adapters", "32 on the base"),
            ("8 adapters together beside in turns", "8 on 8 adapters", "8 adapters in turns"),
            ("8 adapters beside one static batch", "8 on 8 adapters", "8 on 8 adapters, one static batch"),
        ):
            yield f"ratio: {name}", _ratio(found[part], found[whole])
        yield from _first_tokens(served, base, rounds)
        yield from _first_answers(empty, adapters[:rounds])


def _forms(model: str, place: Path, dtype: str, rounds: int) -> Iterator[tuple[str, str]]:
    base, adapters = Path(model).name if Path(model).exists() else model, [_adapter(number) for number in range(8)]
    entry = {"properties": {"名前": {"type": "string"}, "年": {"type": "integer"}}, "required": ["名前", "年"]}
    schema = {"type": "array", "items": {"type": "object", **entry}, "minItems": 20}  # none ends within the new tokens
    with _server(model, place / "library", dtype) as served:
        cases: dict[str, Callable[[], tuple[float, float]]] = {
            "8 on the base": lambda: _together(served, [base] * 8),
            "8 on the base, JSON of a schema": lambda: _together(served, [base] * 8, guided_json=schema),
            "8 on 8 adapters": lambda: _together(served, adapters),
            "8 on 8 adapters, JSON of a schema": lambda: _together(served, adapters, guided_json=schema),
        }
        found = _in_rounds(cases, rounds)
    yield from _speeds(found)
    for name in ("8 on the base", "8 on 8 adapters"):
        yield f"ratio: {name}, JSON of a schema beside none", _ratio(found[f"{name}, JSON of a schema"], found[name])


def _in_rounds(
    cases: dict[str, Callable[[], tuple[float, float]]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Run all cases in each round, and return their results without those of a first round, which warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            result = case()
            if number:
                found[name].append(result)
    return found


def _speeds(found: dict[str, list[tuple[float, float]]]) -> Iterator[tuple[str, str]]:
    for name, results in found.items():
        cpu, wall = (statistics.median(values) for values in zip(*results, strict=True))
        yield f"{name}: tokens/s of processor and wall time", f"{cpu:,.0f}, {wall:,.0f}"


def _ratio(part: Sequence[tuple[float, float]], whole: Sequence[tuple[float, float]]) -> str:
    return f"{statistics.median(one[0] / other[0] for one, other in zip(part, whole, strict=True)):.2f}"


def _first_tokens(served: Served, base: str, rounds: int) -> Iterator[tuple[str, str]]:
    """Yield the time to the first token of a short prompt, alone and while 8 others run and a long prompt comes."""

    async def run(busy: bool) -> float:
        generator, others, answers = random.Random(1), Answers(), Answers()
        async with httpx2.AsyncClient(base_url=served.url, timeout=600) as client:
            tasks = []
            if busy:
                tasks = [
                    asyncio.create_task(_ask(client, others, base, prompt(generator, _PROMPT), 64)) for _ in range(8)
                ]
                while len(others.first) < 8:
                    await asyncio.sleep(0.01)
                tasks.append(asyncio.create_task(_ask(client, others, base, prompt(generator, 900), 1)))
                await asyncio.sleep(0.05)
            await _ask(client, answers, base, prompt(generator, _PROMPT), 1)
            await asyncio.gather(*tasks)
        return answers.first[0]

    for busy in (False, True):
        seconds = [asyncio.run(run(busy)) for _ in range(rounds)]
        label = "beside 8 requests and a prompt of 900 tokens" if busy else "alone"
        yield f"first token of a prompt of {_PROMPT}, {label}: median seconds", f"{statistics.median(seconds):.3f}"


def _first_answers(served: Served, adapters: Sequence[str]) -> Iterator[tuple[str, str]]:
    def seconds(name: str) -> float:
        start = time.perf_counter()
        _together(served, [name], 1)
        return time.perf_counter() - start

    new, again = [seconds(name) for name in adapters], [seconds(name) for name in adapters]
    yield (
        "first answer of one token of an adapter that is not in memory: median seconds",
        f"{statistics.median(new):.3f}",
    )
    yield "the same of one in memory", f"{statistics.median(again):.3f}"


def _large_library(model: str, place: Path, dtype: str, rounds: int) -> Iterator[tuple[str, str]]:
    large, hot = place / "large", [_adapter(number) for number in range(_HOT)]
    for number in range(_LIBRARY):
        source, target = place / "library" / _adapter(number % _HOT), large / _adapter(number)
        shutil.copytree(source, target, copy_function=os.link)
    arguments = ("--max-batch", str(_HOT), "--max-loaded", str(_HOT), "--max-wait", _PATIENCE)
    with _server(model, place / "library", dtype, *arguments) as small, _server(model, large, dtype, *arguments) as big:
        found: list[list[tuple[float, float]]] = [[], []]
        for counted in [False, *[True] * rounds]:
            for served, speeds in zip((small, big), found, strict=True):
                speed = _together(served, hot, 8)
                if counted:
                    speeds.append(speed)
    yield f"ratio: {_HOT} adapters of a library of {_LIBRARY:,} beside one of {_HOT}", _ratio(found[1], found[0])


def _idle(model: str, place: Path, dtype: str, seconds: float = 20) -> Iterator[tuple[str, str]]:
    start = time.perf_counter()
    with _server(model, place / "library", dtype) as served:
        yield "seconds until it answers", f"{time.perf_counter() - start:.1f}"
        _together(served, [_adapter(0)], 4)
        time.sleep(8)  # a connection that is kept is closed after 5 s
        cpu, switches = served.cpu_seconds, served.switches
        time.sleep(seconds)
        yield f"idle for {seconds:g} s: seconds of processor time", f"{served.cpu_seconds - cpu:.2f}"
        yield f"idle for {seconds:g} s: wake-ups", str(served.switches - switches)


def _load(model: str, place: Path, dtype: str, clients: int, seconds: float) -> Iterator[tuple[str, str]]:
    base = Path(model).name if Path(model).exists() else model
    arguments = ("--max-loaded", "8", "--max-waiting", "100", "--prefix-memory", "0.05")
    with _server(model, place / "library", dtype, *arguments) as served:
        _together(served, [_adapter(number) for number in range(8)], 4)
        idle = served.threads, served.files
        memory: list[int] = []
        answers = asyncio.run(_many(served, base, clients, seconds, memory))
        state = _when_idle(served)
        for status, count in sorted(answers.statuses.items()):
            yield f"load: {status}", f"{count:,}"
        minutes = [statistics.median(memory[start : start + 60]) for start in range(0, len(memory) - 30, 60)]
        yield "load: memory in each minute, median, MB", ", ".join(f"{minute / 1e6:,.0f}" for minute in minutes)
        yield "load: largest memory, MB", f"{max(memory) / 1e6:,.0f}"
        yield "load: threads before and after", f"{idle[0]}, {served.threads}"
        yield "load: open files before and after", f"{idle[1]}, {served.files}"
        yield "load: rows and waiting requests at the end", str(state)


def _when_idle(served: Served) -> tuple[float, float]:
    """Wait until nothing is computed, at most a minute; return the rows and the waiting requests."""
    state = (-1.0, -1.0)
    for _ in range(60):
        found = httpx2.get(f"{served.url}/health").json()
        state = found["running"], found["waiting"]
        if state == (0, 0):
            break
        time.sleep(1)
    time.sleep(6)  # until kept connections are closed
    return state


async def _many(served: Served, base: str, clients: int, seconds: float, memory: list[int]) -> Answers:
    answers, end = Answers(), time.monotonic() + seconds

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(served.resident)
            await asyncio.sleep(1)

    async def one(number: int) -> None:
        generator = random.Random(number)
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(base_url=served.url, timeout=120, limits=limits) as client:
            while time.monotonic() < end:
                try:
                    await _act(client, answers, generator, base)
                except (TimeoutError, httpx2.HTTPError) as error:
                    answers.statuses[f"client: {type(error).__name__}"] += 1
                await asyncio.sleep(generator.random())

    await asyncio.gather(watch(), *(one(number) for number in range(clients)))
    return answers


async def _act(client: httpx2.AsyncClient, answers: Answers, generator: random.Random, base: str) -> None:
    """Do one of the things that clients do."""
    kind, name = generator.random(), generator.choice([base, *map(_adapter, range(_HOT))])
    tokens = prompt(generator, generator.randrange(1, 100))
    if kind < 0.5:
        await _ask(client, answers, name, tokens, generator.randrange(1, 24))
    elif kind < 0.65:  # goes away
        asked = _ask(client, Answers(), name, tokens, 200)
        try:
            await asyncio.wait_for(asked, generator.random() * 3)
        except TimeoutError:
            answers.statuses["gone away"] += 1
    elif kind < 0.8:
        await _post(client, answers, "/v1/completions", generator.choice(_MALFORMED))
    else:
        huge: Mapping[str, Any] = {"model": name, "prompt": prompt(generator, generator.choice([3000, 20_000]))}
        await _post(client, answers, "/v1/completions", json.dumps(huge).encode())


async def _post(client: httpx2.AsyncClient, answers: Answers, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    answers.statuses[str(answer.status_code)] += 1


if __name__ == "__main__":
    main()
