"""Average the weights of two models of one shape: `python average.py FIRST SECOND 0.6 OUT` (folders).

OUT is a copy of SECOND with the weights 0.4 · FIRST + 0.6 · SECOND, in the dtype of FIRST. The mean of a model before
and after further training is often better than both on the text of the first training (Wortsman et al., "Robust
fine-tuning of zero-shot models", 2022).
"""

import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

FILE = "model.safetensors"


def main(first: Path, second: Path, share: float, out: Path) -> None:
    """Write the model; `share` is that of the second one."""
    one, other = load_file(first / FILE), load_file(second / FILE)
    with safe_open(second / FILE, "pt") as file:
        metadata = file.metadata()
    shutil.copytree(second, out, ignore=shutil.ignore_patterns("start"))
    mean = {name: ((1 - share) * one[name].float() + share * other[name].float()).to(one[name].dtype) for name in one}
    save_file(mean, out / FILE, metadata=metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
