"""Compute what a reorganisation of the source must leave equal, and compare it with an earlier result.

    python -m tests.equal_results --out before.json
    python -m tests.equal_results --out after.json --like before.json     # exits with 1 if a value differs

It uses commands and the names of `tsugiki.__all__` only, so that the same file runs before and after. The values belong
to one machine and its library versions. Values that differ between two runs of the same source (times, memory, ids of
answers) and those of the machine (versions, working directory) are replaced by the names of their types.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import tsugiki
from tests.files import json_of

METHODS = (
    "prompt-tuning", "prefix-tuning", "p-tuning", "houlsby", "pfeiffer", "ia3", "lora", "rslora", "dora", "lora+",
    "pissa", "orthogonal", "lora-fa", "bitfit", "norms", "head", "select", "full",
)  # fmt: skip
METHOD_CONFIG = {"select": {"target_parameters": ["norm.weight", "ln_1.weight"]}}
MODELS: Mapping[str, dict[str, Any]] = {"gpt2": {}, "llama": {"attention_bias": True}}
"""Kinds of tiny models, and the settings in which they differ from those of `tests.tiny`."""
EMBEDDED = "--model embedded --data texts --device cpu --max-steps 20 --learning-rate 1e-3 --held-out-characters 100"
SHORT = "--batch-size 1 --block-size 16 --validation none --eval-steps 20"
"""Rows for bases whose matrix products are slow on some processors."""
RUNS = {
    "a": "--batch-size 2 --block-size 64 --base-dtype fp32 --prompts 春は --prompts 庭師 --sample-tokens 16",
    "b": f"{SHORT} --base-dtype fp32 --seed 7 --r 4 --lora-dropout 0.3 --use-rslora",
    "bf16": f"{SHORT} --base-dtype bf16",
    "int8": f"{SHORT} --base-dtype int8",
    "nf4": f"{SHORT} --base-dtype nf4 --prompts 春は --sample-tokens 8",
    "houlsby": f"{SHORT} --base-dtype fp32 --method houlsby",
    "chapter": f"{SHORT} --base-dtype fp32 --as-chapter --retention-data embedded",
}
"""Runs of the embedded model, by the name of their folder; `a` and `b` are the adapters of the other commands."""
WRONG = (
    "train --blok-size 8",
    "train --model embedded --data missing.txt --out wrong",
    "train field.yaml",
    "train --model embedded --data texts --out wrong --method lorra",
    "merge --adapter missing --out wrong",
)
REQUESTS: Mapping[str, tuple[str, Any]] = {
    "models": ("models", None),
    "greedy": ("completions", {"model": "embedded", "prompt": "春は", "temperature": 0}),
    "sampled": ("completions", {"model": "b", "prompt": ["春は", "庭"], "seed": 3, "temperature": 0.8, "n": 2}),
    "logprobs": ("completions", {"model": "b", "prompt": "春は", "temperature": 0, "echo": True, "logprobs": 3}),
    "stop": ("completions", {"model": "a", "prompt": "春は", "temperature": 0, "stop": ["。"], "max_tokens": 40}),
    "stream": ("completions", {"model": "a", "prompt": "春は", "temperature": 0, "stream": True, "max_tokens": 4}),
    "chat": ("chat/completions", {"model": "a", "messages": [{"role": "user", "content": "春は"}], "seed": 1}),
    "wrong type": ("completions", {"model": "a", "prompt": "春は", "max_tokens": "many"}),
}
"""Requests to a server: the path after `/v1/`, and the body of a POST request, or None for a GET request."""
LEFT_OUT = {"versions", "earlier_versions", "working_directory", "machine", "seconds", "tokens_per_second"}
LEFT_OUT |= {"peak_memory", "created"}


def flatten(value: Any, name: str, hidden: bool = False) -> dict[str, Any]:
    """Return `path: value` of all numbers and strings in a JSON value; what is left out has its type as its value."""
    if isinstance(value, Mapping) and value:
        parts = [flatten(one, f"{name}/{key}", hidden or key in LEFT_OUT) for key, one in value.items()]
    elif isinstance(value, list) and value:
        parts = [flatten(one, f"{name}/{i}", hidden) for i, one in enumerate(value)]
    else:
        of_answer = name.endswith("/id") and "cmpl-" in str(value)
        return {name: type(value).__name__ if hidden or of_answer else value}
    return {key: one for part in parts for key, one in part.items()}


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def weights_and_settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the names of the files in a folder, and the SHA-256 of those that hold weights or settings."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    kept = [path for path in files if re.fullmatch(r"(adapter_|model|config|Modelfile|tokenizer).*", path.name)]
    digests = {path.name: digest(path.read_bytes()) for path in kept}
    return flatten({"files": [path.name for path in files], **digests}, name)


class Commands:
    """Commands in a working directory; each method returns the values of what its commands wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `tsugiki …` in the working directory."""
        pipe = subprocess.PIPE
        line = [sys.executable, "-m", "tsugiki", *arguments]
        return subprocess.Popen(line, cwd=self.folder, stdout=pipe, stderr=pipe, encoding="utf-8")

    def run(self, arguments: str, *folders: str) -> dict[str, Any]:
        """Run a command; its exit status, what it printed to standard error if it failed, and files of folders."""
        process = self.start(*arguments.split())
        _, error = process.communicate()
        shown = error.replace(str(self.folder), "FOLDER") if process.returncode else ""
        values = flatten({"status": process.returncode, "error": shown}, arguments)
        for name in folders:
            values |= weights_and_settings(self.folder / name, name)
        return values

    def train(self, out: str) -> dict[str, Any]:
        """Train the embedded model; returns the record of the run and its adapter."""
        values = self.run(f"train {EMBEDDED} {RUNS[out]} --out {out}", out)
        record = self.folder / out / "run.json"
        return values | (flatten(json_of(record), f"{out}/run.json") if record.exists() else {})

    def change(self) -> dict[str, Any]:
        """Merge two adapters into their base, combine them in two ways, truncate one result, and export both."""
        values = self.run("merge --adapter a --adapter b --weights 0.7,0.3 --out merged --no-verify", "merged")
        values |= self.run("adapters combine a b --weights 0.7,0.3 --out ./combined", "combined")
        values |= self.run("adapters combine a b --weights 1,-1 --out ./difference", "difference")
        values |= self.run("adapters truncate ./combined --rank 3 --out ./truncated", "truncated")
        values |= self.run("export a --gguf adapter.gguf") | self.run("export b --merged --gguf model.gguf")
        return values | {path.name: digest(path.read_bytes()) for path in self.folder.glob("*.gguf")}

    def serve(self) -> dict[str, Any]:
        """Return the answers of a server that holds two adapters."""
        flags = "--adapter a=a --adapter b=b --port 0 --chat-template default --dtype fp32"
        process = self.start("serve", "--model", "embedded", *flags.split())
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            address = re.search(r"http://[0-9.:]+", line)
            assert address, line
            values: dict[str, Any] = {}
            for name, (path, body) in REQUESTS.items():
                values |= flatten(answer(f"{address[0]}/v1/{path}", body), f"serve/{name}")
        finally:
            process.terminate()
            process.communicate()
        return {**values, "serve/status": process.returncode}

    def fail(self) -> dict[str, Any]:
        """Return the exit status and the message of wrong commands."""
        (self.folder / "field.yaml").write_text("model: embedded\ndata: texts\nout: wrong\nmax_steps: many\n")
        return {key: one for wrong in WRONG for key, one in self.run(wrong).items()}


def answer(url: str, body: Any) -> list[Any]:
    """Return the status of an answer, and its JSON: several values if it is a stream."""
    if body is not None:
        body = json.dumps({"max_tokens": 8, **body}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.strip()]
    return [status, *(event if event == "[DONE]" else json.loads(event) for event in events)]


def trained_methods(kind: str) -> dict[str, Any]:
    """Train two steps of a tiny model in the working directory with every method; returns losses and files."""
    values: dict[str, Any] = {}
    rows = {"batch_size": 2, "block_size": 32, "max_steps": 2, "validation": "none", "device": "cpu"}
    for method in METHODS:
        name, out = f"methods/{method}/{kind}", Path(f"{method}-{kind}")
        dtype = {"compute_dtype" if method == "full" else "base_dtype": "fp32"}
        settings = {**rows, **dtype, "method_config": METHOD_CONFIG.get(method, {})}
        try:
            tsugiki.train(model=kind, data="text.txt", out=str(out), method=method, learning_rate=1e-2, **settings)
        except tsugiki.TsugikiError as error:
            values[f"{name}/error"] = str(error)
        else:
            record = json_of(out / "run.json")
            values |= flatten({key: record[key] for key in ("parameters", "loss_curve", "evaluations")}, name)
            values |= weights_and_settings(out, name)
    return values


def results(folder: Path) -> dict[str, Any]:
    """Compute all values in an empty folder."""
    source = Path(tsugiki.__file__).parent
    os.environ |= {
        **{"PYTHONPATH": str(source.parent), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        **{"TSUGIKI_LANG": "en", "LC_ALL": "C.UTF-8", "COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"},
        **{"XDG_CACHE_HOME": str(folder / "cache"), "TSUGIKI_ADAPTERS": str(folder / "library")},
    }
    os.chdir(folder)
    shutil.copytree(next(source.rglob("quickstart")), "texts")
    commands = Commands(folder)
    with ThreadPoolExecutor(1) as beside_library, ThreadPoolExecutor(2) as pool:
        runs = [beside_library.submit(commands.train, out) for out in RUNS]
        with redirect_stdout(sys.stderr), open(os.devnull, "w") as nothing, redirect_stderr(nothing):
            from tests.tiny import TEXT, save_tiny  # after the environment is set, because it imports torch

            Path("text.txt").write_text(TEXT, encoding="utf-8")
            values: dict[str, Any] = {}
            for kind, overrides in MODELS.items():
                save_tiny(kind, kind, **overrides)
                values |= trained_methods(kind)
        for task in runs:
            values |= task.result()
        for task in [pool.submit(other) for other in (commands.change, commands.serve, commands.fail)]:
            values |= task.result()
    return values


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each name whose value differs or that only one of the results has."""
    absent = "(absent)"
    names = [name for name in before | after if before.get(name, absent) != after.get(name, absent)]
    return [f"{name}: {before.get(name, absent)!r} -> {after.get(name, absent)!r}" for name in names]


def main() -> int:
    """Compute the values, write them, and compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compute what a reorganisation must leave equal.")
    parser.add_argument("--out", type=Path, required=True, help="file of the result")
    parser.add_argument("--like", type=Path, help="earlier result; differences are printed")
    given = parser.parse_args()
    out, like = given.out.absolute(), (given.like or given.out).absolute()
    with tempfile.TemporaryDirectory() as folder:
        values = results(Path(folder).resolve())
        os.chdir("/")
    out.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, after = (json_of(path) for path in (like, out))
    lines = differences(before, after)
    print("\n".join([*lines, f"{len(lines)} of {len(before)} values differ"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
