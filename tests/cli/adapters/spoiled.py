"""Adapters that are damaged, and the check that a command refuses its input."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.adapters.folders import forget_digests
from tests.files import contents
from tests.tiny import logits
from tsugiki import load_adapter
from tsugiki.base import load_model
from tsugiki.io import ADAPTER_FILE, METADATA_FILE

Run = Callable[..., tuple[int, str, str]]
"""Runs a command: status, standard output, standard error."""


def adapted(base: str, folder: Path) -> torch.Tensor:
    """The logits of the base with an adapter."""
    model = load_model(base)
    load_adapter(model, folder)
    return logits(model)


def spoiled(folder: Path, target: Path, word: str) -> str:
    """Copy an adapter to `target` and damage the copy in the way that `word` names, such as "NAN"; return its path.

    A word that is not in capitals is returned as it is.
    """
    if not word.isupper() or len(word) == 1:
        return word
    how = word.lower()
    out = target / how
    shutil.copytree(folder, out)
    path = out / ADAPTER_FILE
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    if how == "nan":
        tensors = load_file(path)
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, path)
    if how == "other":
        config = json.loads((out / METADATA_FILE).read_text())
        config["base"] = {"name": "another", "fingerprint": "sha256:0"}
        (out / METADATA_FILE).write_text(json.dumps(config))
    forget_digests(out)
    return str(out)


def assert_refused(run: Run, folder: Path, arguments: Sequence[str], fact: str) -> None:
    """Assert that a command fails with one line that contains `fact`, and that no file in `folder` changes."""
    before = contents(folder)
    status, out, err = run("adapters", *arguments)
    assert status == 2, err
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1
    assert fact in lines[0]
    assert out == ""
    assert contents(folder) == before
