"""The benchmark entries: one row for each tool and configuration.

To add an entry, write a function that loads a model and then takes steps between `StepBarrier.begin` and
`StepBarrier.end`, and add a row here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from benchmarks.speed.workload import StepBarrier, Workload

INSTALL = "pip install -e '.[dev]'"
"""What installs the tools that most measurements compare with."""


@dataclass(frozen=True)
class BenchmarkEntry:
    """A tool and its configuration."""

    summary: str
    function: str
    """Module and function, such as `benchmarks.speed.hugging_face:chapter`. The entry's process imports it."""
    compute_dtype: str | None = None
    """Dtype of the base model's matrix products: fp32, bf16 or int8. None if the entry chooses it and reports it."""
    bytes_per_parameter: int = 4
    """Memory of one parameter during training in bytes, with its gradient and optimiser state if it is trained."""
    requires: tuple[str, ...] = ()
    """Packages that are not dependencies of Tsugiki."""
    install: str = INSTALL
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


_HUGGING_FACE, _TSUGIKI = "benchmarks.speed.hugging_face", "benchmarks.speed.tsugiki_entry"
_KEEP = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
_PEFT_FP32 = partial(BenchmarkEntry, compute_dtype="fp32", requires=("peft",))
_PEFT_BF16 = partial(BenchmarkEntry, compute_dtype="bf16", bytes_per_parameter=2, requires=("peft",))
_TRL = partial(_PEFT_BF16, requires=("peft", "trl", "datasets"))

_USUAL: Mapping[str, BenchmarkEntry] = {
    "chapter": _PEFT_FP32(
        "PEFT and Trainer as in the textbook chapter: float32, base dropout on", f"{_HUGGING_FACE}:chapter"
    ),
    "peft-fp32": _PEFT_FP32(
        "PEFT and Trainer, float32, base dropout off, the faster attention implementation",
        f"{_HUGGING_FACE}:peft_fp32",
    ),
    "peft-bf16": _PEFT_BF16("as peft-fp32, with the base in bfloat16", f"{_HUGGING_FACE}:peft_bf16"),
    "peft-bf16-malloc": _PEFT_BF16(
        "as peft-bf16, and glibc keeps freed memory, as in Tsugiki",
        f"{_HUGGING_FACE}:peft_bf16",
        environment=_KEEP,
    ),
    "peft-bf16-compiled": _PEFT_BF16("as peft-bf16, with torch_compile=True", f"{_HUGGING_FACE}:peft_bf16_compiled"),
    "trl": _TRL(
        "TRL's SFTTrainer with its fused loss, the base in bfloat16, the faster attention implementation",
        f"{_HUGGING_FACE}:trl",
    ),
    "tsugiki": BenchmarkEntry("`tsugiki train` with its default settings", f"{_TSUGIKI}:tsugiki"),
    "tsugiki-fp32": BenchmarkEntry("Tsugiki, base in float32", f"{_TSUGIKI}:tsugiki_fp32", "fp32"),
    "tsugiki-bf16": BenchmarkEntry("Tsugiki, base in bfloat16", f"{_TSUGIKI}:tsugiki_bf16", "bf16"),
    "tsugiki-int8": BenchmarkEntry("Tsugiki, base in int8", f"{_TSUGIKI}:tsugiki_int8", "int8"),
}

_FULL = partial(BenchmarkEntry, full=True, bytes_per_parameter=16)
TRAINING_ENTRIES: Mapping[str, BenchmarkEntry] = {
    **_USUAL,
    "peft-bf16-autocast": _PEFT_BF16(
        "as peft-bf16, with bf16=True (autocast): A and B are multiplied in bfloat16 too",
        f"{_HUGGING_FACE}:peft_bf16_autocast",
    ),
    "trl-checkpointed": _TRL(
        "as trl, with gradient checkpointing (TRL's default)", f"{_HUGGING_FACE}:trl_checkpointed"
    ),
    "trainer-full-fp32": _FULL("full fine-tuning by Trainer, in float32", f"{_HUGGING_FACE}:full_fp32", "fp32"),
    "trainer-full-bf16": _FULL(
        "full fine-tuning by Trainer, matrix products in bfloat16", f"{_HUGGING_FACE}:full_bf16", "bf16"
    ),
    "tsugiki-full-fp32": _FULL("full fine-tuning by Tsugiki, in float32", f"{_TSUGIKI}:tsugiki_full_fp32", "fp32"),
    "tsugiki-full-bf16": _FULL(
        "full fine-tuning by Tsugiki, matrix products in bfloat16",
        f"{_TSUGIKI}:tsugiki_full_bf16",
        "bf16",
        bytes_per_parameter=18,
    ),
    "litgpt": BenchmarkEntry(
        "LitGPT's finetune_lora, bf16-true",
        "benchmarks.speed.litgpt_entry:litgpt",
        "bf16",
        bytes_per_parameter=2,
        requires=("litgpt", "lightning"),
        install="pip install --no-deps litgpt lightning torchmetrics lightning-utilities jsonargparse docstring-parser",
    ),
    "mlx-lm": BenchmarkEntry(
        "mlx_lm.lora, bfloat16",
        "benchmarks.speed.mlx_entry:mlx_lm",
        "bf16",
        bytes_per_parameter=2,
        requires=("mlx", "mlx_lm"),
        install="pip install 'mlx-lm[cpu]'",
    ),
}
"""The entries that learn texts: the usual ones, variants, full fine-tuning, and tools with an install of their own."""

ALL_ENTRIES = tuple(_USUAL)
"""What `all` stands for."""

_TRL_DPO = partial(BenchmarkEntry, requires=("peft", "trl", "datasets"))
PREFERENCE_ENTRIES: Mapping[str, BenchmarkEntry] = {
    "trl-dpo": _TRL_DPO(
        "TRL's DPOTrainer and PEFT with TRL's default settings; float32 if the processor has no bfloat16",
        f"{_HUGGING_FACE}:trl_dpo",
    ),
    "trl-dpo-best": _TRL_DPO(
        "as trl-dpo, without gradient checkpointing, reference computed once, the faster attention",
        f"{_HUGGING_FACE}:trl_dpo_best",
    ),
    "tsugiki-dpo": BenchmarkEntry("`tsugiki train --preference dpo`", f"{_TSUGIKI}:tsugiki"),
    "tsugiki-dpo-recompute": BenchmarkEntry(
        "as tsugiki-dpo with --recompute blocks, which is what gradient checkpointing does in TRL",
        f"{_TSUGIKI}:tsugiki_recompute",
    ),
}
"""The entries that learn pairs of answers (`--preference`)."""

DEFAULT_ENTRIES = ("chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki")
"""The training entries that are measured if no names are given."""

LIMIT_ENTRY = BenchmarkEntry("only the matrix products of a training step", "benchmarks.speed.limit:limit")
