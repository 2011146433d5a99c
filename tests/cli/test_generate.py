"""`tsugiki generate`: which base and adapter, which prompts, which dtype."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.files import rows_of
from tests.runs import TRAIN


def test_the_base_is_what_the_adapter_names_and_an_unfinished_run_is_taken_by_its_checkpoint(
    base: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run("train", "--model", "base", *TRAIN)[0] == 0
    prompt = ("--prompt", "枝", "--max-new-tokens", "5")
    whole = run("generate", "--adapter", "run", *prompt)[1]
    assert whole.startswith("枝")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "unfinished" / "checkpoints")
    shutil.copy(tmp_path / "run" / "run.json", tmp_path / "unfinished")
    checkpoint = "unfinished/checkpoints/checkpoint-2"
    assert run("generate", "--adapter", checkpoint, *prompt) == (0, whole, f"next: tsugiki chat {checkpoint}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, out, err = run("generate", "--adapter", "../unfinished", *prompt)
    assert (status, out) == (0, whole)
    assert "checkpoint-2" in err
    assert run("eval", "--adapter", "../unfinished", "--data", "../text.txt")[0] == 0
    assert run("merge", "--adapter", "../run", "--out", "merged", "--no-verify")[0] == 0
    status, _, err = run("generate", "--adapter", "../rum", *prompt)
    assert (status, "'../run'" in err) == (2, True)


def test_prompts_from_a_file_and_standard_input_as_json_lines_and_side_by_side(
    trained: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prompts.txt").write_text("枝\n\n雨の\n", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a\\nb"}\n')
    tokens = ("--model", trained, "--max-new-tokens", "5", "--temperature", "0")
    alone = [run("generate", *tokens, "--prompt", prompt)[1].removesuffix("\n") for prompt in ("枝", "雨の", "a\nb")]
    assert run("generate", *tokens, "枝")[1].removesuffix("\n") == alone[0]
    assert run("generate", *tokens, "--prompts", "prompts.txt")[1] == f"{alone[0]}\n{alone[1]}\n"
    out = run("generate", *tokens, "--prompt", "枝", "--prompts", "prompts.jsonl", "--jsonl")[1]
    lines = rows_of(out)
    assert [(line["prompt"], line["prompt"] + line["text"]) for line in lines] == [("枝", alone[0]), ("a\nb", alone[2])]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO("雨の\n".encode("shift_jis"))))
    assert run("generate", *tokens, "--prompt", "-")[1].removesuffix("\n") == alone[1]
    out = run("generate", "--adapter", "run", "--prompt", "枝", "--compare", "--max-new-tokens", "5")[1]
    assert trained[:20] in out  # a long name is cut
    assert "run" in out


def test_the_dtype_is_that_of_training(base: str, run, monkeypatch: pytest.MonkeyPatch):
    import tsugiki
    from tsugiki.training.score import targets

    load_model, seen = targets.load_model, list[str]()

    def noted(name: str, dtype: str, **others: object) -> object:
        seen.append(dtype)
        return load_model(name, dtype, **others)

    monkeypatch.setattr(targets, "load_model", noted)
    monkeypatch.setattr(targets, "preferred_compute_dtype", lambda: "bf16")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for command in (("generate", "--prompt", "a", "--max-new-tokens", "1"), ("chat",)):
        for flags in ((), ("--dtype", "fp32")):
            assert run(*command, "--model", base, *flags)[0] == 0
    tsugiki.generate("a", model=base, max_new_tokens=1)
    assert run("eval", "--model", base, "--data", "text.txt")[0] == 0
    assert seen == ["bf16", "fp32", "bf16", "fp32", "bf16", "fp32"], "figures of an evaluation are exact"


def test_what_is_written_is_json_of_a_schema(base: str, run, tmp_path: Path):
    pytest.importorskip("llguidance")
    import tsugiki

    schema = {"type": "array", "items": {"enum": ["雨", 1]}, "minItems": 2, "maxItems": 2}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    asked = ("generate", "--model", base, "--prompt", "枝", "--prompt", "a", "--json-schema")
    status, out, _ = run(*asked, "schema.json", "--jsonl")
    values = [json.loads(json.loads(line)["text"]) for line in out.splitlines()]
    assert status == 0
    assert [len(value) for value in values] == [2, 2]
    assert {part for value in values for part in value} <= {"雨", 1}
    assert json.loads(tsugiki.generate("枝", model=base, json_schema=schema)) == values[0]
    (tmp_path / "schema.json").write_text('{"not": {}}')
    status, _, err = run(*asked, "schema.json")
    assert (status, '"not"' in err.splitlines()[-1]) == (2, True)
