"""`tsugiki adapters`: what each command prints and changes, and adapters by their names in other commands."""

import json
from pathlib import Path

from tests.adapters.folders import write


def names(library: Path) -> list[str]:
    return sorted(path.name for path in library.iterdir() if path.name != ".lock")


def test_an_empty_library_has_no_adapters(run):
    assert "no adapters in" in run("adapters", "list")[1]


def test_add_prints_the_folder_and_the_next_command(run, tmp_path: Path, library: Path):
    write(tmp_path / "run")
    status, out, _ = run("adapters", "add", "run", "--name", "soseki")
    assert (status, out.splitlines()) == (0, [str(library / "soseki"), "next: tsugiki chat soseki"])


def test_add_without_a_name_takes_that_of_the_folder(run, tmp_path: Path, library: Path):
    write(tmp_path / "run")
    assert run("adapters", "add", "run")[0] == 0
    assert names(library) == ["run"]


def test_rename(run, two: Path):
    assert run("adapters", "rename", "soseki", "copy")[0] == 0
    assert names(two) == ["akutagawa", "copy"]


def test_list_shows_each_adapter_with_its_layers(run, two: Path):
    status, out, _ = run("adapters", "list")
    assert (status, out.count("c_attn"), "akutagawa" in out, "soseki" in out) == (0, 2, True, True)


def test_verify_of_whole_adapters(run, two: Path):
    assert run("adapters", "verify")[:2] == (0, "akutagawa: nothing is wrong\nsoseki: nothing is wrong\n")


def test_remove_with_yes_does_not_ask(run, two: Path):
    assert run("adapters", "remove", "soseki", "--yes")[:2] == (0, f"removed {two / 'soseki'}\n")
    assert names(two) == ["akutagawa"]


def test_an_adapter_by_its_name(run, trained: str, library: Path):
    assert run("adapters", "add", "run", "--name", "mine")[0] == 0
    status, out, _ = run("eval", "--adapter", "mine", "--data", "text.txt", "--json")
    assert (status, [json.loads(line)["adapter"] for line in out.splitlines()]) == (0, [None, "mine"])
    generate = ("generate", "--model", trained, "--prompt", "枝", "--max-new-tokens", "3", "--adapter")
    assert run(*generate, "mine")[:2] == run(*generate, "run")[:2]
    assert run("adapters", "verify", "mine", "--model", trained)[0] == 0
    assert "perplexity" in run("adapters", "show", "mine")[1]
