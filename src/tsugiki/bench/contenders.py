"""Who is measured: a row each. A new one is a function (see `BenchmarkEntry.run`) and a row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType

from tsugiki.bench.work import StepBarrier, Work


@dataclass(frozen=True)
class BenchmarkEntry:
    """A tool and the way it is set up."""

    about: str
    function: str
    """Module of this room, and function, as in `hugging_face:chapter`."""
    compute_dtype: str | None = None
    """What its frozen products are computed in: fp32, bf16 or int8; None where it chooses, and says so by a note."""
    bytes_per_weight: int = 4
    """Of the model, as it is held while it trains."""
    needs: tuple[str, ...] = ()
    """Packages that Tsugiki does not bring."""
    install: str = "pip install 'tsugiki[bench]'"
    trains_all: bool = False
    """Every weight, not an adapter."""

    @property
    def run(self) -> Callable[[Work, StepBarrier], None]:
        """Loads the model and takes steps between `StepBarrier.begin` and `StepBarrier.end` until it is stopped."""
        module, _, name = self.function.partition(":")
        run: Callable[[Work, StepBarrier], None] = getattr(import_module(f"tsugiki.bench.{module}"), name)
        return run

    @property
    def missing(self) -> list[str]:
        """Packages that it needs and that are not there."""
        return [package for package in self.needs if find_spec(package) is None]


_LITGPT = "pip install --no-deps litgpt lightning torchmetrics lightning-utilities jsonargparse docstring-parser"
_PEFT, _TRL = ("peft",), ("peft", "trl", "datasets")

CONTENDERS: Mapping[str, BenchmarkEntry] = MappingProxyType(
    {
        "chapter": BenchmarkEntry(
            "PEFT and Trainer as the chapter writes it: float32, dropout of the base on",
            "hugging_face:chapter",
            "fp32",
            needs=_PEFT,
        ),
        "peft-fp32": BenchmarkEntry(
            "PEFT and Trainer, float32, dropout of the base off, the faster attention",
            "hugging_face:peft_fp32",
            "fp32",
            needs=_PEFT,
        ),
        "peft-bf16": BenchmarkEntry(
            "the same with the base in bfloat16", "hugging_face:peft_bf16", "bf16", bytes_per_weight=2, needs=_PEFT
        ),
        "peft-bf16-autocast": BenchmarkEntry(
            "the same with bf16=True (autocast): A and B multiply in bfloat16 as well",
            "hugging_face:peft_bf16_autocast",
            "bf16",
            bytes_per_weight=2,
            needs=_PEFT,
        ),
        "trl": BenchmarkEntry(
            "TRL's SFTTrainer with its fused head, the base in bfloat16, the faster attention",
            "hugging_face:trl",
            "bf16",
            bytes_per_weight=2,
            needs=_TRL,
        ),
        "trl-checkpointed": BenchmarkEntry(
            "the same with gradient checkpointing, TRL's default",
            "hugging_face:trl_checkpointed",
            "bf16",
            bytes_per_weight=2,
            needs=_TRL,
        ),
        "litgpt": BenchmarkEntry(
            "LitGPT's finetune_lora, bf16-true",
            "litgpt:litgpt",
            "bf16",
            bytes_per_weight=2,
            needs=("litgpt", "lightning"),
            install=_LITGPT,
        ),
        "mlx-lm": BenchmarkEntry(
            "mlx_lm.lora, bfloat16",
            "mlx:mlx_lm",
            "bf16",
            bytes_per_weight=2,
            needs=("mlx", "mlx_lm"),
            install="pip install 'mlx-lm[cpu]'",
        ),
        "tsugiki": BenchmarkEntry("what `tsugiki train` does when nothing is said", "tsugiki_entry:tsugiki"),
        "tsugiki-fp32": BenchmarkEntry("Tsugiki, frozen weights in float32", "tsugiki_entry:tsugiki_fp32", "fp32"),
        "tsugiki-bf16": BenchmarkEntry("Tsugiki, frozen weights in bfloat16", "tsugiki_entry:tsugiki_bf16", "bf16"),
        "tsugiki-int8": BenchmarkEntry("Tsugiki, frozen weights in int8", "tsugiki_entry:tsugiki_int8", "int8"),
        "trainer-full-fp32": BenchmarkEntry(
            "Trainer on every weight, float32, dropout off, the faster attention",
            "hugging_face:trainer_full_fp32",
            "fp32",
            bytes_per_weight=16,
            trains_all=True,
        ),
        "trainer-full-bf16": BenchmarkEntry(
            "the same with bf16=True (autocast)",
            "hugging_face:trainer_full_bf16",
            "bf16",
            bytes_per_weight=16,
            trains_all=True,
        ),
        "tsugiki-full-fp32": BenchmarkEntry(
            "Tsugiki on every weight, float32",
            "tsugiki_entry:tsugiki_full_fp32",
            "fp32",
            bytes_per_weight=16,
            trains_all=True,
        ),
        "tsugiki-full-bf16": BenchmarkEntry(
            "Tsugiki on every weight, products in bfloat16",
            "tsugiki_entry:tsugiki_full_bf16",
            "bf16",
            bytes_per_weight=18,
            trains_all=True,
        ),
    }
)
"""Of training."""

DEFAULT = ("chapter", "peft-fp32", "peft-bf16", "trl", "tsugiki")
"""Measured when nobody is named."""

GENERATORS: Mapping[str, BenchmarkEntry] = MappingProxyType(
    {
        "peft-grafted": BenchmarkEntry(
            "PEFT's adapter beside the base", "generation:peft_grafted", "fp32", needs=_PEFT
        ),
        "peft-merged": BenchmarkEntry("PEFT's adapter merged into it", "generation:peft_merged", "fp32", needs=_PEFT),
        "grafted": BenchmarkEntry("Tsugiki's adapter beside the base", "generation:grafted", "fp32"),
        "grafted-off": BenchmarkEntry("the same within disable_adapter", "generation:grafted_off", "fp32"),
        "merged": BenchmarkEntry("Tsugiki's adapter merged into it", "generation:merged", "fp32"),
    }
)
"""Of generation."""

LIMIT = BenchmarkEntry("only the matrix products of a step", "limit:limit")
