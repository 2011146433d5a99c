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
def test_a_notebook_has_both_languages_and_no_outputs(notebook: Path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(notebook, "code"))
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
        assert sum("<iframe" in value._repr_html_() for value in shown if hasattr(value, "_repr_html_")) == 3
    else:
        losses = next(value for value in shown if isinstance(value, list))
        assert losses[-1] < losses[0]
