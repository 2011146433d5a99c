"""Compare planned with measured peak memory and time: `python -m benchmarks.memory.planning --out FOLDER`.

Ten shapes of 7 million to 1.7 billion parameters (the embedded model, and others with random weights) train for some
steps, each in a process of its own. `tsugiki plan` has planned each before, in another process. Peak memory is
`peak_memory` of run.json, time is the time of its steps. Times need a quiet machine, memory does not. A folder that
holds results gets those that are missing.

`--unfitted` measures twelve runs instead, on which no formula of a plan was fitted: mixtures of experts, windows, all
parameters, another method, a high rank, and long rows.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.figures import Figures
from benchmarks.models import SHAPES
from tsugiki.base.loading import load_tokenizer
from tsugiki.io.json import read_json


@dataclass(frozen=True)
class Case:
    """A way to run."""

    shape: str
    dtype: str = "fp32"
    recompute: str = "none"
    settings: str = ""
    """Flags that override those of all cases."""

    @property
    def cells(self) -> list[str]:
        """The first cells of its row."""
        return [f"{self.shape} {self.settings}".rstrip(), self.dtype, self.recompute]


_LLAMA = {"num_key_value_heads": 3, "vocab_size": 16_000, "max_position_embeddings": 2048}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2-20m": {"model_type": "gpt2", "n_embd": 384, "n_layer": 8, "n_head": 6, "vocab_size": 16_000},
    "llama-35m": {
        **_LLAMA,
        "model_type": "llama",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    },
    "qwen3-70m": {
        **_LLAMA,
        "model_type": "qwen3",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 14,
        "num_attention_heads": 9,
        "head_dim": 64,
    },
    **{
        name: {"model_type": SHAPES[name].model_type, **SHAPES[name].settings}
        for name in ("smollm2-135m", "gpt2-small", "gemma3-270m", "qwen2.5-0.5b", "tinyllama-1.1b")
    },
    "smollm2-1.7b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
}
"""Settings of the configs: those of `benchmarks.models`, and others of sizes between and above them."""
_MORE_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-moe-66m": {
        "model_type": "qwen3_moe",
        "hidden_size": 384,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 24,
        "num_experts_per_tok": 4,
        "vocab_size": 16_000,
        "tie_word_embeddings": True,
    },
    "olmoe-80m": {
        "model_type": "olmoe",
        "hidden_size": 320,
        "intermediate_size": 320,
        "num_hidden_layers": 8,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "num_experts": 24,
        "num_experts_per_tok": 4,
        "vocab_size": 20_000,
    },
    "gemma3-90m": {
        "model_type": "gemma3_text",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "sliding_window": 256,
        "vocab_size": 64_000,
    },
    "mistral-60m": {
        "model_type": "mistral",
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": 256,
        "vocab_size": 24_000,
    },
    "phi3-50m": {
        "model_type": "phi3",
        "hidden_size": 448,
        "intermediate_size": 1280,
        "num_hidden_layers": 12,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
        "pad_token_id": 0,
        "vocab_size": 20_000,
    },
}
"""Those of the unfitted runs."""
UNFITTED = [
    Case("olmoe-80m", dtype="bf16"),
    Case("olmoe-80m", dtype="bf16", recompute="blocks"),
    Case("qwen3-moe-66m", dtype="int8"),
    Case("gemma3-90m", dtype="bf16"),
    Case("phi3-50m", dtype="int8"),
    Case("phi3-50m"),
    Case("mistral-60m", dtype="bf16", settings="--block-size 2048 --batch-size 2"),
    Case("mistral-60m", dtype="int8"),
    Case("qwen3-70m", dtype="nf4"),
    Case("llama-35m", dtype="bf16", settings="--r 256 --lora-alpha 256"),
    Case("smollm2-135m", dtype="bf16", settings="--batch-size 2 --method ia3"),
    Case("gemma3-90m", settings="--method full --batch-size 2"),
]

_HEADERS = {
    "en": ["model", "base", "recomputed", "planned GB", "measured GB", "error", "planned s", "measured s"],
    "ja": ["モデル", "ベースモデル", "再計算", "予測 GB", "実測 GB", "誤差", "予測 秒", "実測 秒"],
}


def main() -> None:
    """Print a table, and write the figures after each run, so that an interrupted measurement goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models, runs and results.json")
    parser.add_argument("--shapes", nargs="+", default=["embedded", *CONFIGS])
    parser.add_argument("--unfitted", action="store_true", help="the twelve runs instead of shapes, dtypes, recompute")
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "int8", "nf4"])
    parser.add_argument("--recompute", nargs="+", default=["none", "blocks"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="of a step; memory depends on those computed at once only")
    parser.add_argument("--block-size", type=int, default=512)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    rows = [list(row) for row in read_json(results)["rows"]] if results.exists() else []
    text = options.out / "text.txt"
    text.write_text("".join(f"{i}: 庭師は枝を{i * 7 % 10}本切り、風の音を聞いた。\n" for i in range(4000)))
    arguments = [word for word in sys.argv[1:] if word != str(options.out)]
    command = " ".join(["python -m benchmarks.memory.planning", *arguments]).replace("--out", "--out runs")
    fitted = [Case(*values) for values in product(options.shapes, options.dtypes, options.recompute)]
    for case in UNFITTED if options.unfitted else fitted:
        if case.cells in [row[:3] for row in rows]:
            continue
        model = case.shape if case.shape == "embedded" else save_model(case.shape, options.out / case.shape)
        run = options.out / "-".join(case.cells).replace(" ", "")
        shutil.rmtree(run, ignore_errors=True)
        figures = _measure(model, case, text, run, options.steps, options.rows, options.block_size)
        columns = len(case.cells) + (3 if options.unfitted else 5)  # times of such different runs say little
        rows.append([*case.cells, *figures][:columns])
        print(" | ".join(rows[-1]), flush=True)
        Figures({language: names[:columns] for language, names in _HEADERS.items()}, rows, command).write(results)


def save_model(shape: str, folder: Path) -> str:
    """Write the model of a shape with random weights to a folder that does not exist yet, and return its name."""
    if folder.exists():
        return str(folder)
    settings = dict((CONFIGS | _MORE_CONFIGS)[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.bos_token_id = config.eos_token_id = 0
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer("embedded").save_pretrained(folder)
    return str(folder)


def _measure(model: str, case: Case, text: Path, run: Path, steps: int, rows: int, tokens: int) -> list[str]:
    """Plan and train, and return the planned and the measured figures of one way to run."""
    dtype = "--compute-dtype" if "full" in case.settings else "--base-dtype"
    flags = f"{dtype} {case.dtype} --recompute {case.recompute} --block-size {tokens} --max-steps {steps}"
    flags += f" --batch-size {rows} --validation none --learning-rate 1e-4 {case.settings}"
    arguments = ["--model", model, "--data", str(text), *flags.split()]
    command = [sys.executable, "-m", "tsugiki"]
    planned = json.loads(subprocess.run([*command, "plan", *arguments, "--json"], capture_output=True).stdout)
    option = planned["options"][0]
    run_flags = f"--held-out-characters 500 --micro-batch-size {option['micro_batch_size']}".split()
    subprocess.run([*command, "train", *arguments, "--out", str(run), *run_flags], check=True, capture_output=True)
    measured = json.loads((run / "run.json").read_text())["training"]
    error = option["peak_memory"] / measured["peak_memory"] - 1
    return [
        *(f"{size / 1e9:.3f}" for size in (option["peak_memory"], measured["peak_memory"])),
        f"{error:+.1%}",
        *(f"{seconds:.2f}" for seconds in (option["seconds"], measured["seconds"])),
    ]


if __name__ == "__main__":
    main()
