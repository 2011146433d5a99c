"""Every module of benchmarks/ can be imported, so that a rename in the library is noticed."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import benchmarks

FOLDER = Path(benchmarks.__file__).parent
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("*.py") if path.stem != "__init__"
)
OPTIONAL = {
    "gguf.bases": "llama_cpp",
    "gguf.adapters": "llama_cpp",
    "gguf.models": "llama_cpp",
    "gguf.llama_cpp_outputs": "llama_cpp",
    "quality.rewards_trl": "trl",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    assert import_module(f"benchmarks.{name}").__doc__


def test_the_overview_names_every_command():
    """A module is a command if it can be run; `python -m benchmarks.race` runs `race/__main__.py`."""
    commands = {
        f"python -m benchmarks.{name.removesuffix('.__main__')}"
        for name in NAMES
        if '__name__ == "__main__"' in (FOLDER / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    }
    named = set(re.findall(r"`(python -m benchmarks[.\w]+)", (FOLDER / "README.md").read_text("utf-8")))
    assert named == commands
