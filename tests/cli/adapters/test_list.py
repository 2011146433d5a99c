"""`tsugiki adapters list`."""

import json
import os
from pathlib import Path

from tests.cli.imports import output_without


def test_list(run, two: Path):
    (two / "empty").mkdir()
    (two / "a\x1b[2J\nb").mkdir()
    (two / os.fsdecode(b"\xff")).mkdir()
    status, out, _ = run("adapters", "list")
    assert status == 0
    assert "270.4 → 134.3" in out
    assert "empty is broken: no adapter: it has no adapter_config.json" in out
    assert "\x1b" not in out
    assert "a\\x1b[2J\\nb is broken" in out
    lines = [json.loads(line) for line in run("adapters", "list", "--json")[1].splitlines()]
    names = ["a\x1b[2J\nb", "akutagawa", "empty", "soseki", os.fsdecode(b"\xff")]
    assert [line["name"] for line in lines] == names
    assert [bool(line["broken"]) for line in lines] == [True, False, True, False, True]
    assert lines[1]["held_out"] is None
    assert lines[3]["held_out"]["after"]["loss"] == 4.9
    assert (lines[3]["ranks"], lines[3]["targets"], lines[3]["parameters"]) == ([4], ["c_attn"], 1024)


def test_list_does_not_import_transformers(two: Path):
    assert "soseki" in output_without({"transformers", "datasets", "matplotlib"}, "adapters", "list")
