"""Measure what a LoRA step saves for its backward pass, and its peak memory: `python -m benchmarks.memory.kept`.

The model is GPT-2 small with random weights (r 8 on c_attn and c_proj, dropout 0.1). Each saved tensor is attributed to
the function that saves it. A tensor saved by several functions counts once; weights do not count. The peak is
predicted as

    threads · tokens per group · saved bytes per token  +  threads · (logits of a chunk + hidden states and gradient)

and compared with the peak of the process during a step, minus its memory before.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.speed.tsugiki_entry import random_blocks
from benchmarks.speed.workload import Workload
from tsugiki import LoraConfig, graft, use_fast_paths
from tsugiki.data.blocks import Collator, StepBatches
from tsugiki.fast.loss import rows_per_chunk
from tsugiki.lora.graft import graft as plain_graft
from tsugiki.training.step.gradients import Gradients
from tsugiki.training.tools.memory import peak, reset_peak, resident
from tsugiki.training.tools.processes import start_accelerator

_GROUP = 512


def main() -> None:
    """Print the table and the peak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--plain", action="store_true", help="use the plain definitions instead of the fast paths")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).to(getattr(torch, options.dtype))
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["c_attn", "c_proj"])
    if options.plain:
        plain_graft(model, config)
    else:
        use_fast_paths(graft(model, config))
    ids = torch.randint(0, 50_000, (4, _GROUP))
    batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(_GROUP).expand(4, -1)}
    saved = _saved_bytes(model, {name: tensor[:1] for name, tensor in batch.items()})
    print("| saved by | bytes per token and layer |\n| --- | ---: |")
    for name, size in saved.most_common():
        print(f"| {name} | {size / _GROUP / 12:,.0f} |")
    print(f"| total | {saved.total() / _GROUP / 12:,.0f} |\n")
    blocks = random_blocks(Workload("gpt2", batch=4, length=_GROUP), 50_000)
    batches = StepBatches(blocks, Collator("position_ids", model.dtype), batch_size=4, seed=0)
    gradients = Gradients(model, model, batches, start_accelerator("cpu"), micro_batch_size=1)
    gradients.step(0)
    threads = min(torch.get_num_threads(), len(ids))
    width = model.dtype.itemsize
    chunk = rows_per_chunk(50_257, width) * 50_257 * width
    predicted = threads * (saved.total() + chunk + 4 * _GROUP * 768 * width)
    reset_peak()
    before = resident() or 0
    gradients.step(0)
    measured = (peak() or 0) - before
    print(f"{threads} threads, predicted {predicted / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f} MiB")


def _saved_bytes(model: GPT2LMHeadModel, inputs: Mapping[str, Tensor]) -> Counter[str]:
    """Return the bytes that are saved in a forward pass up to the last hidden states, by function."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: Counter[str] = Counter()
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights and pointer not in seen:
            seen[pointer] = tensor
            found[_saving_function()] += tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
    return found


def _saving_function() -> str:
    """Return the file and the name of the innermost function outside torch that saves a tensor."""
    frame = sys._getframe(2)
    while frame.f_back and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}: {frame.f_code.co_name}"


if __name__ == "__main__":
    main()
