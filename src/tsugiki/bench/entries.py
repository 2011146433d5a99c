"""The benchmark entries: one row for each tool and configuration.

To add an entry, write a function `(workload, barrier) -> None` (see `BenchmarkEntry.run`) and add a row here.
`run_benchmark` also accepts entries that are defined elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from tsugiki.bench.workload import StepBarrier, Workload


@dataclass(frozen=True)
class BenchmarkEntry:
    """A tool and its configuration."""

    summary: str
    function: str
    """Module and function, such as `tsugiki.bench.hugging_face:chapter`. The entry's process imports it."""
    compute_dtype: str | None = None
    """Dtype of the base model's matrix products: fp32, bf16 or int8. None if the entry chooses it and reports it."""
    bytes_per_parameter: int = 4
    """Memory of one parameter of the model during training, with its gradient and optimiser state if it is trained."""
    requires: tuple[str, ...] = ()
    """Packages that are not dependencies of Tsugiki."""
    install: str = "pip install 'tsugiki[bench]'"
    full: bool = False
    """Whether all parameters are trained instead of an adapter."""

    @property
    def run(self) -> Callable[[Workload, StepBarrier], None]:
        """The function that loads the model and takes steps between `StepBarrier.begin` and `StepBarrier.end`."""
        return load_function(self.function)

    @property
    def missing(self) -> list[str]:
        """Required packages that are not installed."""
        return [package for package in self.requires if find_spec(package) is None]


def load_function(name: str) -> Callable[[Workload, StepBarrier], None]:
    """Import the function that is named `module:function`."""
    module, _, attribute = name.partition(":")
    function: Callable[[Workload, StepBarrier], None] = getattr(import_module(module), attribute)
    return function


_PEFT, _TRL = ("peft",), ("peft", "trl", "datasets")
_HUGGING_FACE, _TSUGIKI, _GENERATION = (
    f"tsugiki.bench.{module}" for module in ("hugging_face", "tsugiki_entry", "generation")
)

TRAINING_ENTRIES: Mapping[str, BenchmarkEntry] = MappingProxyType(
    {
        "chapter": BenchmarkEntry(
            "PEFT and Trainer as in the textbook chapter: float32, base dropout on",
            f"{_HUGGING_FACE}:chapter",
            "fp32",
            requires=_PEFT,
        ),
        "peft-fp32": BenchmarkEntry(
            "PEFT and Trainer, float32, base dropout off, the faster attention implementation",
            f"{_HUGGING_FACE}:peft_fp32",
            "fp32",
            requires=_PEFT,
        ),
        "peft-bf16": BenchmarkEntry(
            "as peft-fp32, with the base in bfloat16",
            f"{_HUGGING_FACE}:peft_bf16",
            "bf16",
            bytes_per_parameter=2,
            requires=_PEFT,
        ),
        "peft-bf16-autocast": BenchmarkEntry(
            "as peft-bf16, with bf16=True (autocast): A and B are multiplied in bfloat16 too",
            f"{_HUGGING_FACE}:peft_bf16_autocast",
            "bf16",
            bytes_per_parameter=2,
            requires=_PEFT,
        ),
        "trl": BenchmarkEntry(
            "TRL's SFTTrainer with its fused loss, the base in bfloat16, the faster attention implementation",
            f"{_HUGGING_FACE}:trl",
            "bf16",
            bytes_per_parameter=2,
            requires=_TRL,
        ),
        "trl-checkpointed": BenchmarkEntry(
            "as trl, with gradient checkpointing (TRL's default)",
            f"{_HUGGING_FACE}:trl_checkpointed",
            "bf16",
            bytes_per_parameter=2,
            requires=_TRL,
        ),
        "tsugiki": BenchmarkEntry("`tsugiki train` with its default settings", f"{_TSUGIKI}:tsugiki"),
        "tsugiki-fp32": BenchmarkEntry("Tsugiki, base in float32", f"{_TSUGIKI}:tsugiki_fp32", "fp32"),
        "tsugiki-bf16": BenchmarkEntry("Tsugiki, base in bfloat16", f"{_TSUGIKI}:tsugiki_bf16", "bf16"),
        "tsugiki-int8": BenchmarkEntry("Tsugiki, base in int8", f"{_TSUGIKI}:tsugiki_int8", "int8"),
        "trainer-full-fp32": BenchmarkEntry(
            "full fine-tuning by Trainer, float32, dropout off, the faster attention implementation",
            f"{_HUGGING_FACE}:trainer_full_fp32",
            "fp32",
            bytes_per_parameter=16,
            full=True,
        ),
        "trainer-full-bf16": BenchmarkEntry(
            "as trainer-full-fp32, with bf16=True (autocast)",
            f"{_HUGGING_FACE}:trainer_full_bf16",
            "bf16",
            bytes_per_parameter=16,
            full=True,
        ),
        "tsugiki-full-fp32": BenchmarkEntry(
            "full fine-tuning by Tsugiki, float32",
            f"{_TSUGIKI}:tsugiki_full_fp32",
            "fp32",
            bytes_per_parameter=16,
            full=True,
        ),
        "tsugiki-full-bf16": BenchmarkEntry(
            "full fine-tuning by Tsugiki, matrix products in bfloat16",
            f"{_TSUGIKI}:tsugiki_full_bf16",
            "bf16",
            bytes_per_parameter=18,
            full=True,
        ),
    }
)

DEFAULT_ENTRIES = ("chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki")
"""The training entries that are measured unless names are given."""

GENERATION_ENTRIES: Mapping[str, BenchmarkEntry] = MappingProxyType(
    {
        "peft-grafted": BenchmarkEntry(
            "PEFT's adapter, not merged", f"{_GENERATION}:peft_grafted", "fp32", requires=_PEFT
        ),
        "peft-merged": BenchmarkEntry(
            "PEFT's adapter, merged into the base", f"{_GENERATION}:peft_merged", "fp32", requires=_PEFT
        ),
        "grafted": BenchmarkEntry("Tsugiki's adapter, not merged", f"{_GENERATION}:grafted", "fp32"),
        "grafted-off": BenchmarkEntry("as grafted, inside disable_adapter", f"{_GENERATION}:grafted_off", "fp32"),
        "merged": BenchmarkEntry("Tsugiki's adapter, merged into the base", f"{_GENERATION}:merged", "fp32"),
    }
)

LIMIT_ENTRY = BenchmarkEntry("only the matrix products of a training step", "tsugiki.bench.limit:limit")
