"""`tsugiki adapters combine`."""

import json
from pathlib import Path

import pytest

from tests.adapters.folders import forget_digests
from tests.files import json_of


def test_a_combination_is_in_the_library(run, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "combine", *pair, "--out", "both", "--weights", "0.7,-0.3")
    assert status == 0
    assert f"→ {library / 'both'} (" in out
    assert "‖ΔW‖ = " in out
    made = json_of(library / "both" / "tsugiki.json")["provenance"]
    assert made["operation"] == "combine"
    assert [(one["name"], one["weight"]) for one in made["sources"]] == [("a", 0.7), ("b", -0.3)]
    assert all(one["weights"].startswith("sha256:") for one in made["sources"])
    assert json_of(library / "both" / "adapter_config.json")["r"] == 10


@pytest.mark.usefixtures("pair")
def test_other_bases_are_combined_when_asked(run, library: Path):
    files = {name: library / name / "tsugiki.json" for name in "abx"}
    fields = json_of(files["a"])
    base = fields["base"]
    files["a"].write_text(json.dumps({**fields, "base": {"name": "another", "fingerprint": "sha256:0"}}))
    forget_digests(library / "a")
    assert run("adapters", "combine", "b", "a", "--out", "x", "--allow-base-mismatch")[0] == 0
    assert json_of(files["x"])["base"] == base
