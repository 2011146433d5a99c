import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest

import tsugiki
from tests.errors import assert_refused
from tests.runs import run_config
from tests.tiny import TEXT
from tsugiki.training import RunConfig


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return run_config(folder, **changes).model_dump(exclude_unset=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a finished run, and a text that it has not learned."""
    folder = tmp_path_factory.mktemp("functions")
    tsugiki.train(**settings(folder))
    (folder / "other.txt").write_text(TEXT[-300:], encoding="utf-8")
    return folder


def test_train_returns_the_record_and_writes_the_report(folder: Path):
    record = tsugiki.train(resume=False, **settings(folder, out="again"))
    assert repr(record).startswith(f"<run {folder / 'again'}: finished, 4 steps, held-out bits per character ")
    assert len(repr(record)) < 200 + len(str(folder))
    html = record._repr_html_()
    assert html.startswith("<iframe")
    assert "&lt;svg" in html
    assert "枝を" in html
    assert (folder / "again" / "report.html").is_file()
    assert_refused("already holds a run", tsugiki.train, **settings(folder, out="again"))


def test_the_settings_are_in_the_signature_and_the_docstring():
    shown = inspect.signature(tsugiki.train).parameters
    assert set(shown) == {"resume", *RunConfig.model_fields}
    assert [name for name in tsugiki.__all__ if not callable(getattr(tsugiki, name))] == []
    assert shown["epochs"].default == RunConfig.model_fields["epochs"].default
    assert shown["model"].default is inspect.Parameter.empty
    text = inspect.getdoc(tsugiki.train) or ""
    assert all(f"    {name}: " in text for name in RunConfig.model_fields)
    assert "out" not in inspect.signature(tsugiki.preview).parameters


def test_preview_shows_itself(folder: Path):
    given = settings(folder)
    del given["out"]
    preview = tsugiki.preview(rows=1, **given)
    assert repr(preview).startswith(f"<preview of {folder / 'texts'}")
    assert "<iframe" in preview._repr_html_()
    assert len(preview.rows) == 1


def test_evaluate_and_generate_take_an_adapter(folder: Path):
    base, adapter = str(folder / "base-gpt2"), str(folder / "run")
    results = tsugiki.evaluate(str(folder / "other.txt"), model=base, adapter=adapter)
    alone, adapted = results.values()
    assert list(results) == [base, f"{base} + {adapter}"]
    assert alone.loss != adapted.loss
    assert f"{adapted.loss:.3f}" in repr(results)
    assert f"{adapted.loss:.3f}" in results._repr_html_()
    (folder / "q.jsonl").write_text('{"prompt": "枝", "choices": ["を", "が"], "expected": ["を", "が"]}\n')
    answers = tsugiki.evaluate(questions=str(folder / "q.jsonl"), model=base, adapter=adapter)
    assert list(answers) == list(results)
    assert repr(answers).count("1 of 1") == 2
    texts = [
        tsugiki.generate("枝", max_new_tokens=8, temperature=0, **given)
        for given in ({"model": base}, {"adapter": adapter}, {"model": base, "adapter": adapter})
    ]
    assert texts[0] != texts[1] == texts[2]
    assert_refused("--model", tsugiki.generate, "枝")


def test_other_libraries_are_quiet(folder: Path, capfd: pytest.CaptureFixture[str]):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        tsugiki.generate("枝", adapter=str(folder / "run"), max_new_tokens=2)
    assert capfd.readouterr().err == ""
