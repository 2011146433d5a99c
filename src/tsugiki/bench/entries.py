"""The benchmark entries: one row for each tool and configuration.

To add an entry, write a function that loads a model and then takes steps between `StepBarrier.begin` and
`StepBarrier.end`, and add a row here. `run_benchmark` also accepts entries that are defined elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from tsugiki.bench.workload import StepBarrier, Workload
from tsugiki.language import marked


@dataclass(frozen=True)
class BenchmarkEntry:
    """A tool and its configuration."""

    summary: str
    function: str
    """Module and function, such as `tsugiki.bench.hugging_face:chapter`. The entry's process imports it."""
    compute_dtype: str | None = None
    """Dtype of the base model's matrix products: fp32, bf16 or int8. None if the entry chooses it and reports it."""
    bytes_per_parameter: int = 4
    """Memory of one parameter during training in bytes, with its gradient and optimiser state if it is trained."""
    requires: tuple[str, ...] = ()
    """Packages that are not dependencies of Tsugiki."""
    install: str = "pip install 'tsugiki[bench]'"
    full: bool = False
    """Whether all parameters are trained instead of an adapter."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """Required packages that are not installed."""
        return [package for package in self.requires if find_spec(package) is None]


def load_function(name: str) -> Callable[[Workload, StepBarrier], None]:
    """Import the function with the name `module:function`."""
    module, _, attribute = name.partition(":")
    function: Callable[[Workload, StepBarrier], None] = getattr(import_module(module), attribute)
    return function


_HUGGING_FACE, _TSUGIKI = "tsugiki.bench.hugging_face", "tsugiki.bench.tsugiki_entry"
_KEEP = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
_PEFT_FP32 = partial(BenchmarkEntry, compute_dtype="fp32", requires=("peft",))
_PEFT_BF16 = partial(BenchmarkEntry, compute_dtype="bf16", bytes_per_parameter=2, requires=("peft",))

TRAINING_ENTRIES: Mapping[str, BenchmarkEntry] = {
    "chapter": _PEFT_FP32(
        marked("PEFT and Trainer as in the textbook chapter: float32, base dropout on"), f"{_HUGGING_FACE}:chapter"
    ),
    "peft-fp32": _PEFT_FP32(
        marked("PEFT and Trainer, float32, base dropout off, the faster attention implementation"),
        f"{_HUGGING_FACE}:peft_fp32",
    ),
    "peft-bf16": _PEFT_BF16(marked("as peft-fp32, with the base in bfloat16"), f"{_HUGGING_FACE}:peft_bf16"),
    "peft-bf16-malloc": _PEFT_BF16(
        marked("as peft-bf16, and glibc keeps freed memory, as in Tsugiki"),
        f"{_HUGGING_FACE}:peft_bf16",
        environment=_KEEP,
    ),
    "peft-bf16-compiled": _PEFT_BF16(
        marked("as peft-bf16, with torch_compile=True"), f"{_HUGGING_FACE}:peft_bf16_compiled"
    ),
    "trl": BenchmarkEntry(
        marked("TRL's SFTTrainer with its fused loss, the base in bfloat16, the faster attention implementation"),
        f"{_HUGGING_FACE}:trl",
        "bf16",
        bytes_per_parameter=2,
        requires=("peft", "trl", "datasets"),
    ),
    "tsugiki": BenchmarkEntry(marked("`tsugiki train` with its default settings"), f"{_TSUGIKI}:tsugiki"),
    "tsugiki-fp32": BenchmarkEntry(marked("Tsugiki, base in float32"), f"{_TSUGIKI}:tsugiki_fp32", "fp32"),
    "tsugiki-bf16": BenchmarkEntry(marked("Tsugiki, base in bfloat16"), f"{_TSUGIKI}:tsugiki_bf16", "bf16"),
    "tsugiki-int8": BenchmarkEntry(marked("Tsugiki, base in int8"), f"{_TSUGIKI}:tsugiki_int8", "int8"),
}

_TRL_DPO = partial(BenchmarkEntry, requires=("peft", "trl", "datasets"))
PREFERENCE_ENTRIES: Mapping[str, BenchmarkEntry] = {
    "trl-dpo": _TRL_DPO(
        marked("TRL's DPOTrainer and PEFT with TRL's default settings; float32 if the processor has no bfloat16"),
        f"{_HUGGING_FACE}:trl_dpo",
    ),
    "trl-dpo-best": _TRL_DPO(
        marked("as trl-dpo, without gradient checkpointing, reference computed once, the faster attention"),
        f"{_HUGGING_FACE}:trl_dpo_best",
    ),
    "tsugiki-dpo": BenchmarkEntry(marked("`tsugiki train --preference dpo`"), f"{_TSUGIKI}:tsugiki"),
    "tsugiki-dpo-recompute": BenchmarkEntry(
        marked("as tsugiki-dpo with --recompute blocks, which is what gradient checkpointing does in TRL"),
        f"{_TSUGIKI}:tsugiki_recompute",
    ),
}
"""The entries of `tsugiki bench --preference`."""

DEFAULT_ENTRIES = ("chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki")
"""The training entries that are measured if no names are given."""

LIMIT_ENTRY = BenchmarkEntry("only the matrix products of a training step", "tsugiki.bench.limit:limit")
