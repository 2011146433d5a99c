"""What rounding to 8 bits costs: `python -m benchmarks.quality.rounding --text smollm2-135m.gguf README.md`.

A real model computes some tokens of a text in float32. For the input x of each linear layer, the product of the rounded
x with the layer's weight is compared with that of x. Errors are those of a row, relative to what its ordinary numbers
contribute: those of at most ten times the row's mean absolute value. For each kind of layer: the median row in the mean
of the layers, and the worst row of the worst layer.

`one step` is rounding to 8 bits by a step that the largest number of a row decides, and `nf4` what `nf4` does
instead: see `plain_levels`. `rotated, one step` and `int8` are the same for rotated rows. `bf16` is x and the weight
in bfloat16. `large` is how many numbers of a row are large for `nf4`.
"""

import argparse
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.figures import Figures
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.lowbit.integer_passes import blocks_of, plain_levels, plain_rotated, plain_rounded
from tsugiki.report.table import Table

_WAYS = ("one step", "nf4", "rotated, one step", "int8", "bf16")
HEADERS = {
    "en": ["model", "layer", *_WAYS, "large"],
    "ja": ["モデル", "層", "一つの刻み", "nf4", "回転、一つの刻み", "int8", "bf16", "大きな値"],
}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs=2, action="append", required=True, metavar=("MODEL", "TEXT"))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for model, text in options.text:
        rows += [[Path(model).stem, *row] for row in _rows(model, Path(text), options.tokens)]
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        Figures(HEADERS, rows, f"python -m benchmarks.quality.rounding {shlex.join(sys.argv[1:])}").write(
            options.figures
        )


@torch.no_grad()
def _rows(name: str, text: Path, tokens: int) -> list[list[str]]:
    ids = load_tokenizer(name)(text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens]
    model: Any = load_model(name)
    errors: defaultdict[str, list[Tensor]] = defaultdict(list)
    large: defaultdict[str, list[float]] = defaultdict(list)

    def measure(path: str, layer: nn.Linear, given: tuple[Tensor]) -> None:
        kind = path.rpartition(".")[2]
        x = given[0].reshape(-1, layer.in_features)
        errors[kind].append(_errors(x, layer.weight))
        large[kind].append(float((plain_levels(x, 1)[0].abs() > 127).sum() / len(x)))

    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
            layer.register_forward_pre_hook(lambda layer, given, path=path: measure(path, layer, given))
    model(ids)
    table = []
    for kind, found in errors.items():
        of_layers = torch.stack(found)  # [layers, ways, rows]
        typical, worst = of_layers.median(2).values.mean(0), of_layers.amax((0, 2))
        cells = [f"{a:.2%}, {b:.1%}" for a, b in zip(typical.tolist(), worst.tolist(), strict=True)]
        table.append([kind, *cells, f"{sum(large[kind]) / len(large[kind]):.1f}"])
    return table


def _errors(x: Tensor, weight: Tensor) -> Tensor:
    """Return the error of each row for each of `_WAYS`, [ways, rows]."""
    blocks, exact = blocks_of(x.shape[1]), x @ weight.T
    ordinary = torch.where(x.abs() > 10 * x.abs().mean(1, keepdim=True), 0, x) @ weight.T
    inputs = []
    for rotation in (1, blocks):
        for integers, step in (plain_rounded(x, rotation), plain_levels(x, rotation)):
            inputs.append(plain_rotated(integers * step, rotation))
    products = [*(given @ weight.T for given in inputs), x.bfloat16().float() @ weight.bfloat16().float().T]
    size = ordinary.norm(dim=1).clamp(min=1e-30)
    return torch.stack([(product - exact).norm(dim=1) / size for product in products])


if __name__ == "__main__":
    main()
