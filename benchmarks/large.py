"""Train models of 7 billion parameters on a processor, in Tsugiki and in PEFT with bitsandbytes.

    python -m benchmarks.large write --shape llama-2-7b --out /data/7b        # 13.5 GB of random weights, in shards
    python -m benchmarks.large tsugiki --model /data/7b --out /data/7b-nf4 --base-dtype nf4
    python -m benchmarks.large peft --model /data/7b --recipe documented
    python -m benchmarks.large peft --model /data/7b --recipe fastest --layers 8

`tsugiki` runs `tsugiki train` (LoRA r 8 on all linear layers, 1 x 512 tokens, 20 steps on a repeated text). `peft`
trains on tokens in its own loop: `documented` is the recipe of PEFT's guide (`prepare_model_for_kbit_training`,
gradient checkpointing, autocast in bfloat16), `fastest` leaves out preparation and checkpointing. With `--layers`, only
the first layers are used. bitsandbytes is never in evaluation mode here, because its gradients would be wrong
afterwards (docs/memory.md). Each prints one JSON object: seconds of each step, tokens/s of the median step, and the
peak resident memory of the process. Run it under `/usr/bin/time -v` on a quiet machine.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tsugiki.base.loading import load_tokenizer
from tsugiki.base.meta import meta_model
from tsugiki.train.record import peak_memory

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
_TEXT = "庭師は枝を切り、風の音を聞いた。雨の朝、台木に接ぎ穂を合わせ、紐で巻いた。\n"


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("write")
    one.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    one.add_argument("--out", type=Path, required=True)
    one = commands.add_parser("tsugiki")
    one.add_argument("--model", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--base-dtype", choices=["bf16", "int8", "nf4"], default="nf4")
    one.add_argument("--recompute", choices=["none", "auto", "blocks"], default="blocks")
    one = commands.add_parser("peft")
    one.add_argument("--model", required=True)
    one.add_argument("--recipe", choices=["documented", "fastest"], default="documented")
    one.add_argument("--layers", type=int)
    for name in ("tsugiki", "peft"):
        commands.choices[name].add_argument("--steps", type=int, default=20)
        commands.choices[name].add_argument("--tokens", type=int, default=512)
        commands.choices[name].add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    {"write": _write, "tsugiki": _tsugiki, "peft": _peft}[options.command](options)


def _write(options: argparse.Namespace) -> None:
    """Write a model with random weights, one shard in memory at a time."""
    from transformers import AutoConfig

    settings = dict(SHAPES[options.shape])
    config = AutoConfig.for_model(settings.pop("model_type"), dtype="bfloat16", **settings)
    options.out.mkdir(parents=True)
    config.architectures = [type(meta_model(config)).__name__]
    config.save_pretrained(options.out)
    load_tokenizer("embedded").save_pretrained(options.out)
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
            save_file(shards[-1], options.out / _shard_name(len(shards)), metadata={"format": "pt"})
            shards[-1] = {}
            shards.append({})
    if shards[-1]:
        save_file(shards[-1], options.out / _shard_name(len(shards)), metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (options.out / "model.safetensors.index.json").write_text(json.dumps(index))
    print(json.dumps({"model": str(options.out), "bytes": total}))


def _shard_name(number: int) -> str:
    return f"model-{number:05}.safetensors"


def _tsugiki(options: argparse.Namespace) -> None:
    """Train by the command, and print the figures of its record."""
    text = options.out.with_suffix(".txt")
    text.write_text(_TEXT * (200 * options.steps), encoding="utf-8")
    started = time.perf_counter()
    flags = {
        "model": options.model,
        "data": text,
        "out": options.out,
        "base-dtype": options.base_dtype,
        "recompute": options.recompute,
        "r": 8,
        "lora-alpha": 32,
        "lora-dropout": options.dropout,
        "target-modules": "all-linear",
        "block-size": options.tokens,
        "batch-size": 1,
        "max-steps": options.steps,
        "learning-rate": 2e-4,
        "validation": "none",
        "held-out": 0.01,
        "held-out-characters": 1,
        "eval-steps": options.steps,
    }
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "tsugiki", "train", *arguments], check=True)
    record = json.loads((options.out / "run.json").read_text())
    training = record["training"]
    print(
        json.dumps(
            {
                "tokens_per_second": training["tokens"] / training["seconds"],
                "seconds_per_step": training["seconds"] / training["steps"],
                "peak_bytes": training["peak_memory"],
                "planned_bytes": record.get("planned_memory"),
                "losses": [point["loss"] for point in record["loss_curve"]],
                "seconds_in_all": time.perf_counter() - started,
            }
        )
    )


def _peft(options: argparse.Namespace) -> None:
    """Train with PEFT and bitsandbytes in a plain loop."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(options.model)
    if options.layers:
        config.num_hidden_layers = options.layers
    started = time.perf_counter()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.model, config=config, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    if options.recipe == "documented":
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(
        r=8, lora_alpha=32, lora_dropout=options.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora).train()
    loaded = time.perf_counter() - started
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = load_tokenizer("embedded")(_TEXT * 200, return_tensors="pt").input_ids[:, : options.tokens]
    losses, seconds = [], []
    for _step in range(options.steps):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(float(loss))
    print(
        json.dumps(
            {
                "recipe": options.recipe,
                "layers": config.num_hidden_layers,
                "tokens_per_second": ids.shape[1] / statistics.median(seconds),
                "seconds": seconds,
                "peak_bytes": peak_memory(),
                "loading_seconds": loaded,
                "losses": losses,
            }
        )
    )


if __name__ == "__main__":
    main()
