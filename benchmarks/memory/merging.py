"""Measure peak memory and time of a merge, from file to file and in memory: `python -m benchmarks.memory.merging`.

The base is a Llama with random weights in bfloat16, in shards; the adapter has rank 16 on all projections. Each
procedure runs in a new process, and its peak is that process's largest resident set; one row is the imports alone.
The files are in the page cache before the first procedure starts.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROCEDURES = {
    "imports alone": "import tsugiki.training.run.merge",
    "file to file": (
        "from pathlib import Path\n"
        "from tsugiki.training.run.merge import *\n"
        "merge_into_folder(Merge('base', [Path('adapter')], verify=False), Path('out'), ProgressDisplay())"
    ),
    "file to file, verified": (
        "from pathlib import Path\n"
        "from tsugiki.training.run.merge import *\n"
        "merge_into_folder(Merge('base', [Path('adapter')]), Path('out'), ProgressDisplay())"
    ),
    "in memory, bfloat16": (
        "from tsugiki import load_adapter, merge, ungraft\n"
        "from tsugiki.base.loading import load_model\n"
        "model = load_model('base', 'stored'); load_adapter(model, 'adapter')\n"
        "ungraft(merge(model)).save_pretrained('out')"
    ),
    "PEFT, bfloat16": (
        "import torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('base', dtype='auto'), 'adapter')\n"
        "model.merge_and_unload().save_pretrained('out')"
    ),
}
_MEASURED = (
    "import sys, tsugiki.training.tools.memory as memory\nmemory.reset_peak()\nexec(sys.argv[1])\nprint(memory.peak())"
)


def main() -> None:
    """Create the base and the adapter, and print a row for each procedure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--shard", default="500MB", help="maximum size of a shard")
    parser.add_argument("--folder", type=Path, help="parent folder of the temporary files")
    parser.add_argument("--procedures", nargs="*", choices=PROCEDURES, default=list(PROCEDURES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        _create_files(folder, options.layers, options.width, options.shard)
        shards = sorted(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
        print(
            f"base {sum(shards) / 1e9:.2f} GB in {len(shards)} shards of at most {shards[-1] / 1e9:.2f} GB, "
            f"adapter {adapter / 1e9:.3f} GB\n"
        )
        print("| procedure | seconds | peak resident memory |\n| --- | ---: | ---: |", flush=True)
        for name in options.procedures:
            seconds, peak = _measure(PROCEDURES[name], folder)
            print(f"| {name} | {seconds:.1f} | {peak / 1e9:.2f} GB |", flush=True)


def _create_files(folder: Path, layers: int, width: int, shard: str) -> None:
    """Save a base and an adapter to the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tsugiki import LoraConfig, active_adapter, graft, save_adapter

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=shard)
    model.name_or_path = str(folder / "base")
    adapter = active_adapter(graft(model, LoraConfig(r=16, lora_alpha=32)))
    for pair in adapter.pairs.values():
        torch.nn.init.normal_(pair.B, std=0.01)
    save_adapter(model, folder / "adapter")


def _measure(code: str, folder: Path) -> tuple[float, int]:
    """Run code in a new process, and return its seconds and its peak memory in bytes."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, code], cwd=folder, check=True, text=True, stdout=subprocess.PIPE
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(folder / "out", ignore_errors=True)
    return seconds, int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
