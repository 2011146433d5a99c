"""`tsugiki adapters`: its commands one after the other."""

import json
from pathlib import Path

from tests.adapters.folders import write


def test_a_day(run, tmp_path: Path, library: Path):
    write(tmp_path / "run", 1)
    assert "no adapters in" in run("adapters", "list")[1]
    status, out, _ = run("adapters", "add", "run", "--name", "soseki")
    assert (status, out.splitlines()) == (0, [str(library / "soseki"), "next: tsugiki chat soseki"])
    assert run("adapters", "add", "run")[0] == 0
    assert run("adapters", "rename", "run", "copy")[0] == 0
    status, out, _ = run("adapters", "list")
    assert (status, out.count("c_attn"), "copy" in out, "soseki" in out) == (0, 2, True, True)
    assert run("adapters", "verify")[:2] == (0, "copy: nothing is wrong\nsoseki: nothing is wrong\n")
    assert run("adapters", "remove", "copy", "--yes")[:2] == (0, f"removed {library / 'copy'}\n")
    assert sorted(path.name for path in library.iterdir()) == [".lock", "soseki"]


def test_an_adapter_by_its_name(run, trained: str, library: Path):
    assert run("adapters", "add", "run", "--name", "mine")[0] == 0
    status, out, _ = run("eval", "--adapter", "mine", "--data", "text.txt", "--json")
    assert (status, [json.loads(line)["adapter"] for line in out.splitlines()]) == (0, [None, "mine"])
    generate = ("generate", "--model", trained, "--prompt", "枝", "--max-new-tokens", "3", "--adapter")
    assert run(*generate, "mine")[:2] == run(*generate, "run")[:2]
    assert run("adapters", "verify", "mine", "--model", trained)[0] == 0
    assert "perplexity" in run("adapters", "show", "mine")[1]
