"""Speed of generation with an adapter: greedy decoding in float32 from a prompt, with a KV cache, beside PEFT.

python -m benchmarks.speed.generation --model gpt2-small --rounds 5 --out results
"""

import argparse
import shlex
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from benchmarks.figures import this_machine
from benchmarks.models import build
from benchmarks.speed.entries import BenchmarkEntry
from benchmarks.speed.hugging_face import with_peft
from benchmarks.speed.results import collect, results_page, write_results
from benchmarks.speed.runner import measure
from benchmarks.speed.workload import ALPHA, RANK, StepBarrier, Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.graft import graft, ungraft
from tsugiki.lora.hold import disable_adapter
from tsugiki.lora.merge import merge

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT, NEW_TOKENS = 32, 64
"""The numbers of tokens of the prompt and of generated tokens."""
ENTRIES = {
    "peft-grafted": BenchmarkEntry(
        "PEFT's adapter, not merged", "benchmarks.speed.generation:peft_grafted", "fp32", requires=("peft",)
    ),
    "peft-merged": BenchmarkEntry(
        "PEFT's adapter, merged into the base", "benchmarks.speed.generation:peft_merged", "fp32", requires=("peft",)
    ),
    "grafted": BenchmarkEntry("Tsugiki's adapter, not merged", "benchmarks.speed.generation:grafted", "fp32"),
    "grafted-off": BenchmarkEntry(
        "as grafted, inside disable_adapter", "benchmarks.speed.generation:grafted_off", "fp32"
    ),
    "merged": BenchmarkEntry("Tsugiki's adapter, merged into the base", "benchmarks.speed.generation:merged", "fp32"),
}


def main() -> None:
    """Measure the entries, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-small", help="as in `python -m benchmarks.speed`")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of consecutive steps of each entry")
    parser.add_argument("--out", type=Path, help="folder for results.json, table.md and plot.svg")
    options = parser.parse_args()
    if options.out:
        check_writable(options.out)
    workload = Workload(options.model, 1, PROMPT)
    results = collect(
        workload,
        NEW_TOKENS,
        ENTRIES,
        measure(ENTRIES, workload, options.rounds, lambda line: print(line, file=sys.stderr)),
        {},
        shlex.join(["python", "-m", "benchmarks.speed.generation", *sys.argv[1:]]),
        this_machine(),
    )
    if options.out:
        write_results(results, options.out)
    print(results_page(results))


def peft(workload: Workload, barrier: StepBarrier, merged: bool) -> None:
    """Generate with PEFT's adapter, merged into the base or not."""
    model = with_peft(build(workload.model, torch.float32))
    _make_nonzero(model)
    _generate(model.merge_and_unload() if merged else model, workload, barrier)


def tsugiki(workload: Workload, barrier: StepBarrier, state: Literal["on", "off", "merged"]) -> None:
    """Generate with Tsugiki's adapter: active, disabled, or merged into the base."""
    model = build(workload.model, torch.float32)
    graft(model, LoraConfig(r=RANK, lora_alpha=ALPHA))
    _make_nonzero(model)
    if state == "merged":
        ungraft(merge(model))
    with disable_adapter(model) if state == "off" else nullcontext():
        _generate(model, workload, barrier)


peft_grafted = partial(peft, merged=False)
peft_merged = partial(peft, merged=True)
grafted = partial(tsugiki, state="on")
grafted_off = partial(tsugiki, state="off")
merged = partial(tsugiki, state="merged")


@torch.no_grad()
def _make_nonzero(model: Any) -> None:
    """Add a constant to the adapter's parameters, because a new adapter does not change the output."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01)


def _generate(model: "PreTrainedModel", workload: Workload, barrier: StepBarrier) -> None:
    model.eval()
    prompt = workload.rows(model.config.vocab_size)[: workload.batch].to(model.device)
    while True:
        barrier.begin()
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        barrier.end()


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
