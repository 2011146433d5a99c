"""The notebooks run from the first cell to the last, without a Jupyter kernel."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def run(code: str, names: dict[str, Any]) -> Any:
    """Run a cell and return what a notebook would show of it: the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_has_the_outputs_of_one_run(notebook: Path):
    """As the command in CONTRIBUTING.md stores them: from the first cell to the last, without warnings or own paths."""
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [one for one in outputs if one["output_type"] == "error" or one.get("name") == "stderr"] == []
    assert re.findall(r"/(?:home|root|tmp|work|Users|usr)/\S*", notebook.read_text(encoding="utf-8")) == []
    pictures = [one["data"]["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == (notebook.stem == "first_adapter")
    assert all(len(picture) < 100_000 for picture in pictures)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_has_both_languages(notebook: Path):
    for cell in cells(notebook, "markdown"):
        english, japanese = (re.findall(kind, "".join(cell["source"])) for kind in (r"[a-z]{3,}", r"[ぁ-ん]{2,}"))
        assert english
        assert japanese


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [run("".join(cell["source"]), names) for cell in cells(notebook, "code")]
    if notebook.stem == "first_adapter":
        assert names["record"].status == "finished"
        assert (tmp_path / "runs/first/report.html").is_file()
        assert sum("<iframe" in value._repr_html_() for value in shown if hasattr(value, "_repr_html_")) == 2
    else:
        losses = next(value for value in shown if isinstance(value, list))
        assert losses[-1] < losses[0]
