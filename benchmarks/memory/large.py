"""Train models of 7 billion parameters on a processor, in Tsugiki and in PEFT with bitsandbytes.

    python -m benchmarks.memory.large write --shape llama-2-7b --out /data/7b       # 13.5 GB, random
    python -m benchmarks.memory.large tsugiki --model /data/7b --out /data/runs --base-dtype nf4 int8
    python -m benchmarks.memory.large start --model /data/7b --base-dtype nf4
    python -m benchmarks.memory.large compare --shape llama-2-7b --layers 3 --work /data/few

`tsugiki` runs `tsugiki train` (LoRA r 8 on all linear layers, 1 x 512 tokens, 20 steps on a repeated text) with each
dtype of the base, and compares the peak memory of the process with the plan. With `--interrupted-at 8`, the run gets
SIGINT after that step and is resumed in a new process.

`start` loads a model twice, in processes of their own and with an empty cache, and prints the time and the processor
time of each `load_model`, without the imports, and the peak memory of the processes.

`compare` writes a model with a few layers of the shape, and trains it in processes of their own, in turns, in one and
the same loop on the same tokens: PEFT with bitsandbytes as its guide says (`documented`:
`make_trainable_for_kbit_training`, gradient checkpointing, autocast in bfloat16) beside Tsugiki with every block
recomputed, and PEFT without preparation and checkpointing (`fastest`) beside Tsugiki without recomputation. The first
step of each process is not counted; the table has the median step of all processes of an entry. bitsandbytes is never
in evaluation mode here, because its gradients would be wrong afterwards (docs/memory.md). `loop` is one such process;
it prints a JSON object with seconds of each step, tokens/s of the median step, and the peak resident memory of the
process.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.figures import Figures
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.fast.paths import use_fast_paths
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.io.run_folder import CHECKPOINTS, checkpoints
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import graft
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.meta import meta_model
from tsugiki.report.table import Table
from tsugiki.training.tools.memory import keep_freed_memory, process_peak

_LLAMA: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        **_LLAMA,
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "qwen3-8b": {
        **_LLAMA,
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "gemma-3-4b": {
        **_LLAMA,
        "model_type": "gemma3_text",
        "vocab_size": 262_208,
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "pad_token_id": 0,
    },
    "llama-1.1b": {
        **_LLAMA,
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "tiny": {  # to try the script
        **_LLAMA,
        "vocab_size": 16_000,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
}
_SHARD = 2_000_000_000
PEFT_DOCUMENTED, PEFT_FASTEST = "PEFT + bitsandbytes, documented", "PEFT + bitsandbytes, fastest"
RECOMPUTED, KEPT = "Tsugiki, recomputed", "Tsugiki"
PEERS = {RECOMPUTED: PEFT_DOCUMENTED, KEPT: PEFT_FASTEST}
"""Each of ours, and what it is compared with."""
ENTRIES = (PEFT_DOCUMENTED, RECOMPUTED, PEFT_FASTEST, KEPT)
HEADERS = {
    "en": ["rows", "nf4", "tokens/s", "ratio", "peak memory", "loading"],
    "ja": ["行", "nf4", "トークン/秒", "比", "最大メモリ", "読み込み"],
}
RUN_HEADERS = {
    "en": ["base", "planned GB", "measured GB", "error", "first and last loss"],
    "ja": ["ベースモデル", "予測 GB", "実測 GB", "誤差", "最初と最後の損失"],
}
_TEXT = "庭師は枝を切り、風の音を聞いた。雨の朝、台木に接ぎ穂を合わせ、紐で巻いた。\n"


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("--out", type=Path, required=True)
    train = commands.add_parser("tsugiki")
    train.add_argument("--model", required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--base-dtype", choices=["bf16", "int8", "nf4"], nargs="+", default=["nf4"])
    train.add_argument("--figures", type=Path, help="JSON file to write the table to")
    train.add_argument("--recompute", choices=["none", "auto", "blocks"], default="blocks")
    train.add_argument("--learning-rate", type=float, default=2e-4)
    train.add_argument("--steps", type=int, default=20)
    train.add_argument("--interrupted-at", type=int, help="step after which the run is interrupted, and resumed")
    start = commands.add_parser("start")
    start.add_argument("--model", required=True)
    start.add_argument("--base-dtype", choices=["int8", "nf4"], default="nf4")
    compare = commands.add_parser("compare")
    compare.add_argument("--work", type=Path, required=True, help="folder for the model; it is removed")
    compare.add_argument("--figures", type=Path, help="JSON file to write the table to")
    compare.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    compare.add_argument("--rounds", type=int, default=2, help="processes of each entry")
    loop = commands.add_parser("loop")
    loop.add_argument("--model", type=Path, required=True)
    loop.add_argument("--entry", choices=ENTRIES, required=True)
    for one in (write, compare):
        one.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
        one.add_argument("--layers", type=int, help="only so many layers")
    for one in (train, loop):
        one.add_argument("--tokens", type=int, default=512)
    for one in (compare, loop):
        one.add_argument("--steps", type=int, default=4)
    for one in (train, compare, loop):
        one.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    if options.command == "write":
        _write(options.shape, options.out, options.layers)
    else:
        {"tsugiki": _tsugiki, "start": _start, "compare": _compare, "loop": _loop}[options.command](options)


def _write(shape_name: str, out: Path, layers: int | None) -> None:
    """Write a model with random weights, one shard in memory at a time."""
    from transformers import AutoConfig

    settings = SHAPES[shape_name] | ({"num_hidden_layers": layers} if layers else {})
    config = AutoConfig.for_model(settings.pop("model_type"), dtype="bfloat16", **settings)
    out.mkdir(parents=True)
    config.architectures = [type(meta_model(config)).__name__]
    config.save_pretrained(out)
    load_tokenizer("embedded").save_pretrained(out)
    model = meta_model(config)
    tied = getattr(model, "all_tied_weights_keys", {})
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    weight_map, total = {}, 0
    for name, shape in ((name, t.shape) for name, t in model.state_dict().items() if name not in tied):
        value = torch.empty(shape, dtype=torch.bfloat16)
        value.normal_(std=0.02, generator=generator) if len(shape) > 1 else value.fill_(1)
        shards[-1][name] = value
        weight_map[name] = _shard_name(len(shards))
        total += 2 * value.numel()
        if sum(2 * t.numel() for t in shards[-1].values()) > _SHARD:
            save_file(shards[-1], out / _shard_name(len(shards)), metadata={"format": "pt"})
            shards[-1] = {}
            shards.append({})
    if shards[-1]:
        save_file(shards[-1], out / _shard_name(len(shards)), metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    print(json.dumps({"model": str(out), "bytes": total}))


def _shard_name(number: int) -> str:
    return f"model-{number:05}.safetensors"


def _tsugiki(options: argparse.Namespace) -> None:
    """Train by the command with each dtype of the base, and print and write what was planned and used."""
    rows = []
    for dtype in options.base_dtype:
        record = _run(options, dtype, options.out / dtype)
        planned, measured = record["planned_memory"], record["training"]["peak_memory"]
        losses = [point["loss"] for point in record["loss_curve"]]
        sizes = [f"{size / 1e9:.2f}" for size in (planned, measured)]
        rows.append([dtype, *sizes, f"{planned / measured - 1:+.1%}", f"{losses[0]:.2f}, {losses[-1]:.2f}"])
        print(Table(RUN_HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command_line = f"python -m benchmarks.memory.large {shlex.join(sys.argv[1:])}"
        Figures(RUN_HEADERS, rows, command_line).write(options.figures)


def _run(options: argparse.Namespace, dtype: str, out: Path) -> dict[str, Any]:
    """Train by the command, with an interruption if one is asked for, and return the record."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = out.with_suffix(".txt")
    text.write_text(_TEXT * (200 * options.steps), encoding="utf-8")
    flags = {
        "model": options.model,
        "data": text,
        "out": out,
        "base-dtype": dtype,
        "recompute": options.recompute,
        "r": 8,
        "lora-alpha": 32,
        "lora-dropout": options.dropout,
        "target-modules": "all-linear",
        "block-size": options.tokens,
        "batch-size": 1,
        "max-steps": options.steps,
        "learning-rate": options.learning_rate,
        "validation": "none",
        "held-out": 0.01,
        "held-out-characters": 1,
        "eval-steps": options.steps,
    }
    if options.interrupted_at:
        flags["save-steps"] = options.interrupted_at
    command = [sys.executable, "-m", "tsugiki", "train"]
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command + arguments)
    if options.interrupted_at:
        while process.poll() is None and not checkpoints(out / CHECKPOINTS):
            time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.wait()
        subprocess.run([*command, "--resume", out, "--recompute", options.recompute], check=True)
    elif process.wait():
        sys.exit(process.returncode)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


_LOAD = """if True:
    import sys, time, transformers
    from tsugiki.base.loading import load_model
    from tsugiki.training.tools.memory import process_peak
    started, used = time.perf_counter(), time.process_time()
    load_model(sys.argv[1], sys.argv[2])
    print(f"{time.perf_counter() - started:.1f} s ({time.process_time() - used:.1f} s of processor time), "
          f"peak {process_peak() / 1e9:.2f} GB")
"""


def _start(options: argparse.Namespace) -> None:
    """Print how long loading takes without and with the cache of quantised models."""
    with tempfile.TemporaryDirectory() as folder:
        for label in ("first", "second"):
            command = [sys.executable, "-c", _LOAD, options.model, options.base_dtype]
            environment = {**os.environ, "XDG_CACHE_HOME": folder}
            printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            print(f"{label} start: {printed.strip()}", flush=True)


def _compare(options: argparse.Namespace) -> None:
    """Print and write a table with a row for each entry and number of tokens."""
    model = options.work / "model"
    _write(options.shape, model, options.layers)
    rows = []
    try:
        for tokens in options.tokens:
            steps = max(3, options.steps * min(options.tokens) // tokens)
            results: dict[str, list[dict[str, Any]]] = {entry: [] for entry in ENTRIES}
            for entry in ENTRIES * options.rounds:
                numbers = {"tokens": tokens, "steps": steps, "dropout": options.dropout}
                arguments = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
                loop = [sys.executable, "-m", "benchmarks.memory.large", "loop", "--model", str(model)]
                waiting = {} if entry.startswith("PEFT") else {"OMP_WAIT_POLICY": "PASSIVE"}  # as `tsugiki` sets it
                command, environment = [*loop, "--entry", entry, *arguments], {**os.environ, **waiting}
                process = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                results[entry].append(json.loads(process.stdout.splitlines()[-1]))
            seconds = {entry: _median_step(of_entry) for entry, of_entry in results.items()}
            for entry, of_entry in results.items():
                rows.append(
                    [
                        f"1 x {tokens:,}",
                        entry,
                        f"{tokens / seconds[entry]:.1f}",
                        f"{seconds[PEERS[entry]] / seconds[entry]:.2f}" if entry in PEERS else "",
                        f"{max(result['peak_bytes'] for result in of_entry) / 1e9:.2f} GB",
                        f"{statistics.median(result['loading_seconds'] for result in of_entry):.0f} s",
                    ]
                )
            print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    finally:
        shutil.rmtree(model)
    if options.figures:
        command_line = f"python -m benchmarks.memory.large {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command_line).write(options.figures)


def _median_step(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of the median step of all processes, without the first step of each."""
    seconds: list[float] = [second for result in results for second in result["seconds"][1:]]
    return statistics.median(seconds)


def _loop(options: argparse.Namespace) -> None:
    """Train in a plain loop, and print what was measured."""
    started = time.perf_counter()
    model = _peft_model(options) if options.entry.startswith("PEFT") else _tsugiki_model(options)
    loaded = time.perf_counter() - started
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = load_tokenizer("embedded")(_TEXT * 200, return_tensors="pt").input_ids[:, : options.tokens]
    losses, seconds = [], []
    for _step in range(options.steps):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.entry.startswith("PEFT")):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss))
    print(
        json.dumps(
            {
                "entry": options.entry,
                "tokens_per_second": ids.shape[1] / statistics.median(seconds[1:]),
                "seconds": seconds,
                "peak_bytes": process_peak(),
                "loading_seconds": loaded,
                "losses": losses,
            }
        )
    )


def _peft_model(options: argparse.Namespace) -> Any:
    from peft import LoraConfig, get_peft_model, make_trainable_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.model, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    if options.entry == PEFT_DOCUMENTED:
        model = make_trainable_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=options.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora).train()


def _tsugiki_model(options: argparse.Namespace) -> Any:
    keep_freed_memory()
    model = load_model(str(options.model), "nf4")
    graft(model, LoraConfig(r=8, lora_alpha=32, lora_dropout=options.dropout, target_modules="all-linear"))
    use_fast_paths(model)
    if options.entry == RECOMPUTED:
        recompute_blocks(model, len(decoder_blocks(model)))
    return model.train()


if __name__ == "__main__":
    main()
