"""`tsugiki adapters extract`."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.adapters.spoiled import Run, adapted, assert_refused, spoiled
from tests.tiny import logits, relative_error
from tsugiki import load_adapter, merge, ungraft
from tsugiki.base import load_model


def test_extracted(run: Run, base: str, pair: tuple[str, str], library: Path, tmp_path: Path):
    model = load_model(base)
    load_adapter(model, library / "a")
    merged = ungraft(merge(model))
    merged.save_pretrained(tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    tensors["transformer.ln_f.weight"] += 0.1
    save_file(tensors, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    arguments = ("adapters", "extract", "--model", str(tmp_path / "merged"), "--base", base, "--rank", "4")
    status, out, _ = run(*arguments, "--out", "found")
    assert status == 0
    assert "did not change: transformer.h.0.mlp.c_fc, transformer.h.1.mlp.c_fc" in out
    assert "not in the adapter: transformer.ln_f.weight (" in out
    assert relative_error(adapted(base, library / "found"), logits(merged)) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("extract", "--model", "base", "--base", "base", "--out", "x"), "differs from base"),
        (("extract", "--model", "nothing/here", "--base", "base", "--out", "x"), "nothing/here"),
        (("extract", "--model", "library/a", "--base", "base", "--out", "x"), "library/a"),
        (("extract", "--model", "base", "--base", "base", "--out", "x", "--target-modules", "q"), "target_modules=q"),
        (("extract", "--model", "base", "--base", "base", "--out", "x", "--rank", "-3"), "r: "),
        (("extract", "--model", "base", "--base", "base", "--out", "a"), "exists"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: tuple[str, ...], fact: str, run: Run, library: Path, tmp_path: Path
):
    assert_refused(run, tmp_path, [spoiled(library / "a", tmp_path, word) for word in arguments], fact)
