"""`tsugiki adapters combine`."""

import json
from pathlib import Path

import pytest

from tests.cli.adapters.spoiled import Run, assert_refused, spoiled


def test_a_combination_is_in_the_library(run: Run, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "combine", *pair, "--out", "both", "--weights", "0.7,-0.3")
    assert status == 0
    assert f"→ {library / 'both'} (" in out
    assert "cat: ‖ΔW‖ = " in out
    made = json.loads((library / "both" / "tsugiki.json").read_text())["provenance"]
    assert (made["operation"], made["settings"]["combination_type"]) == ("combine", "cat")
    assert [(one["name"], one["weight"]) for one in made["sources"]] == [("a", 0.7), ("b", -0.3)]
    assert all(one["weights"].startswith("sha256:") for one in made["sources"])
    assert json.loads((library / "both" / "adapter_config.json").read_text())["r"] == 10


def test_an_approximation_says_how_far_it_is_off(run: Run, pair: tuple[str, str], tmp_path: Path):
    arguments = ("adapters", "combine", *pair, "--type", "svd", "--rank", "5")
    status, out, _ = run(*arguments, "--out", str(tmp_path / "new" / "mix"))
    assert status == 0
    assert "svd: ‖ΔW‖ = " in out
    assert "the exact sum has" in out
    assert json.loads((tmp_path / "new" / "mix" / "adapter_config.json").read_text())["r"] == 5


def test_other_bases_are_combined_when_asked(run: Run, pair: tuple[str, str], library: Path, tmp_path: Path):
    other = spoiled(library / "a", tmp_path, "OTHER")
    assert run("adapters", "combine", "b", other, "--out", "x", "--allow-base-mismatch")[0] == 0
    named = json.loads((library / "x" / "tsugiki.json").read_text())["base"]
    assert named == json.loads((library / "b" / "tsugiki.json").read_text())["base"]


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("combine", "a", "none", "--out", "x"), "'none'"),
        (("combine", "a", "b", "--out", "x", "--weights", "1,two"), "--weights is '1,two'"),
        (("combine", "a", "b", "--out", "a"), "exists"),
        (("combine", "a", "CUT", "--out", "x"), "adapter_model.safetensors"),
        (("combine", "a", "NAN", "--out", "x"), "finite"),
        (("combine", "a", "OTHER", "--out", "x"), "a and other"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: tuple[str, ...], fact: str, run: Run, library: Path, tmp_path: Path
):
    assert_refused(run, tmp_path, [spoiled(library / "a", tmp_path, word) for word in arguments], fact)
