"""Compute the tables of the guide to scaling.

    python -m benchmarks.speed.scaling_table docs/scaling.md docs/scaling.ja.md

Nothing is measured here. An optimiser step on n cards takes

    computation    4 P t / rate                P parameters, t tokens on each card (6 P t if all parameters train)
    reduction      2 (n - 1) / n · b / link    b: bytes of the gradients, 4 for each trained parameter; once per step
    gathering      (n - 1) / n · w / link      only if the base is split; w: bytes of the base that a micro-batch reads,
                                               each block twice (forward and backward), what is outside the blocks once

The reduction follows the backward pass, so its time is added. A block is gathered while another one computes, so
gathering takes only the time by which it is slower than the computation. Attention, the optimiser and latency are left
out. In a guide, a table is between two comments:

    <!-- computed: memory -->
    <!-- end of table -->
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.guide_tables import Language, guide_language
from tsugiki.io.formatting import format_gigabytes
from tsugiki.report.table import Table

RATE = 400e12
"""Assumed floating point operations per second of a card: about 40 % of an H100's specification for bfloat16."""
NVLINK, ETHERNET = 400e9, 12.5e9
"""Assumed bytes per second in one direction between two neighbours of the ring: NVLink, and 100 Gbit/s."""
ROWS, LENGTH = 256, 1024
"""Rows of an optimiser step over all cards, and tokens of a row."""
RANK = 16
_LOGITS = 512 << 20  # bytes of a chunk of logits and probabilities on an accelerator (`fast.loss`)
_TRAINED = 20  # bytes of a trained parameter; the guide lists them
_TABLE = re.compile(r"(<!-- computed: (\w+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)

BaseName: TypeAlias = Literal["bf16", "int8"]


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder with gated feed-forward networks."""

    name: str
    layers: int
    width: int
    key_width: int
    """Width of all keys of a token, and of all values."""
    inner: int
    """Width inside the feed-forward network."""
    vocabulary: int
    tied: bool = False
    """Whether embedding and head share their weight."""

    @property
    def outside(self) -> int:
        """Parameters outside the blocks: embedding, head and the last norm."""
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.width

    @property
    def parameters(self) -> int:
        """All parameters."""
        attention = 2 * self.width * (self.width + self.key_width)
        return self.layers * (attention + 3 * self.width * self.inner + 2 * self.width) + self.outside

    def adapter(self, r: int) -> int:
        """Return the parameters of LoRA of rank r on all linear layers of the blocks."""
        attention = 2 * (self.width + self.width) + 2 * (self.width + self.key_width)
        return self.layers * r * (attention + 3 * (self.width + self.inner))

    def activations(self, dropout: bool) -> int:
        """Return the bytes per token that LoRA on all linear layers keeps for the backward pass, in bfloat16.

        Kept are, in each block: the input of the two norms in float32; the inputs of the linear layers (q, k and v
        share one, gate and up share one); query, key, value and result of a fused attention kernel; gate, silu(gate)
        and up; and with LoRA dropout, a byte for each element of the inputs of the seven layers.
        """
        norms, gated = 2 * 4 * self.width, 3 * 2 * self.inner
        inputs = 2 * (3 * self.width + self.inner)
        attention = 2 * (2 * self.width + 2 * self.key_width)
        masks = 6 * self.width + self.inner if dropout else 0
        return self.layers * (norms + gated + inputs + attention + masks)


QWEN_1_7B = Decoder("Qwen3 1.7B", 28, 2048, 1024, 6144, 151_936, tied=True)
LLAMA_8B = Decoder("Llama 3 8B", 32, 4096, 1024, 14_336, 128_256)
LLAMA_70B = Decoder("Llama 3 70B", 80, 8192, 1024, 28_672, 128_256)


@dataclass(frozen=True)
class Setup:
    """A way to train a model on some cards."""

    model: Decoder
    cards: int = 1
    base: BaseName = "bf16"
    """Dtype of the base; in full fine-tuning, of the copy that computes."""
    split: bool = False
    """Whether the base is split over the cards."""
    full: bool = False
    """Whether all parameters train, instead of an adapter."""
    rows: int = 1
    """Rows of a micro-batch."""

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return self.model.parameters if self.full else self.model.adapter(RANK)

    def base_bytes(self) -> float:
        """Return the memory of the frozen base on a card. Of a split base, two blocks at a time are whole."""
        if self.full:
            return 0
        width, total, outside = self._width(), self.model.parameters, self.model.outside
        one_weight = 2 * self.model.vocabulary * self.model.width if self.base == "int8" else 0  # in bfloat16
        if not self.split:
            return width * total + one_weight
        return width * (total / self.cards + outside + 2 * (total - outside) / self.model.layers) + one_weight

    def trained_bytes(self) -> int:
        """Return the memory of what trains: value, gradients and AdamW."""
        head = 4 * self.model.vocabulary * self.model.width if self.full else 0  # its gradient, of a micro-batch
        return _TRAINED * self.trained + head

    def activation_bytes(self) -> int:
        """Return the memory that a micro-batch keeps for its backward pass."""
        return self.rows * LENGTH * self.model.activations(dropout=not self.full)

    def memory(self) -> float:
        """Return the memory of a card, without that of the libraries."""
        return self.base_bytes() + self.trained_bytes() + self.activation_bytes() + _LOGITS

    def reduced_bytes(self) -> int:
        """Return the bytes that are summed over the cards once per step."""
        return 4 * self.trained

    def sent_bytes(self) -> tuple[float, float]:
        """Return what a card sends in a step: to reduce, and to gather."""
        share = (self.cards - 1) / self.cards
        outside = self.model.outside
        read = self._width() * (2 * (self.model.parameters - outside) + outside) if self.split else 0
        return 2 * share * self.reduced_bytes(), share * read * ROWS / self.cards / self.rows

    def computing_seconds(self) -> float:
        """Return the time in which a card computes its part of a step."""
        return (6 if self.full else 4) * self.model.parameters * ROWS * LENGTH / self.cards / RATE

    def efficiency(self, link: float) -> float:
        """Return the part of a step in which the cards compute, if a link sends so many bytes per second."""
        reducing, gathering = (sent / link for sent in self.sent_bytes())
        computing = self.computing_seconds()
        return computing / (max(computing, gathering) + reducing)

    def _width(self) -> int:
        return 2 if self.base == "bf16" else 1  # int8 has 0.1 % more, for the scales


MEMORY_SETUPS = (
    Setup(QWEN_1_7B),
    Setup(QWEN_1_7B, full=True),
    Setup(LLAMA_8B),
    Setup(LLAMA_8B, base="int8"),
    Setup(LLAMA_8B, cards=8, split=True),
    Setup(LLAMA_70B, cards=8, split=True),
    Setup(LLAMA_70B, cards=8, split=True, base="int8"),
)
STEP_SETUPS = tuple(
    Setup(model, cards, split=split, full=full, rows=rows)
    for model, split, full, rows in (
        (QWEN_1_7B, False, False, 4),
        (QWEN_1_7B, False, True, 4),
        (LLAMA_8B, False, False, 4),
        (LLAMA_8B, True, False, 4),
        (LLAMA_70B, True, False, 1),
    )
    for cards in (8, 64)
)


def memory_table(language: Language) -> Table:
    """Return the memory of a card, by what takes it, for a micro-batch of one row."""
    headers = {
        "en": ["model", "trains", "dtype", "split over", "base", "trained", "activations", "logits", "sum"],
        "ja": ["モデル", "手法", "データ型", "分割数", "ベース", "学習対象", "活性値", "ロジット", "合計"],
    }
    rows = [
        [
            *_names(setup),
            setup.base,
            str(setup.cards) if setup.split else "–",
            *map(format_gigabytes, (setup.base_bytes(), setup.trained_bytes(), setup.activation_bytes(), _LOGITS)),
            format_gigabytes(setup.memory()),
        ]
        for setup in MEMORY_SETUPS
    ]
    return Table(headers[language], rows)


def step_table(language: Language) -> Table:
    """Return what is sent in an optimiser step, and how long it takes."""
    headers = {
        "en": ["model", "trains", "base", "cards", "gradients", "sent per card", "computation"],
        "ja": ["モデル", "手法", "ベース", "枚数", "合計する勾配", "1 枚の送信量", "計算"],
    }
    links = {"NVLink": NVLINK, "100 Gbit/s": ETHERNET}
    efficiency = {"en": "efficiency", "ja": "効率"}[language]
    kinds = {"en": ("whole", "split"), "ja": ("複製", "分割")}[language]
    rows = [
        [
            *_names(setup),
            kinds[setup.split],
            str(setup.cards),
            format_gigabytes(setup.reduced_bytes()),
            format_gigabytes(sum(setup.sent_bytes())),
            _seconds(setup.computing_seconds()),
            *(
                cell
                for link in links.values()
                for cell in (_seconds(sum(setup.sent_bytes()) / link), f"{setup.efficiency(link):.0%}")
            ),
        ]
        for setup in STEP_SETUPS
    ]
    return Table([*headers[language], *(header for link in links for header in (link, efficiency))], rows)


TABLES: Mapping[str, Callable[[Language], Table]] = {"memory": memory_table, "step": step_table}


def fill_guide(text: str, language: Language) -> str:
    """Return the text of a guide with its computed tables."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]](language).to_markdown()}\n{match[4]}", text)


def main(guides: Sequence[str]) -> None:
    """Fill in the tables of these guides; without guides, print the tables."""
    for guide in map(Path, guides):
        text = guide.read_text(encoding="utf-8")
        guide.write_text(fill_guide(text, guide_language(guide)), encoding="utf-8")
    if not guides:
        print(*(table("en").to_markdown() for table in TABLES.values()), sep="\n")


def _names(setup: Setup) -> list[str]:
    return [setup.model.name, "full" if setup.full else "LoRA"]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.3f} s"


if __name__ == "__main__":
    main(sys.argv[1:])
