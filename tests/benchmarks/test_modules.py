"""Every module of benchmarks/ can be imported, so that a rename in the library is noticed."""

from importlib import import_module
from pathlib import Path

import pytest

import benchmarks

NAMES = sorted(path.stem for path in Path(benchmarks.__file__).parent.glob("*.py") if path.stem != "__init__")
OPTIONAL = {
    "gguf": "llama_cpp",
    "gguf_adapters": "llama_cpp",
    "gguf_models": "llama_cpp",
    "llama_cpp_outputs": "llama_cpp",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    assert import_module(f"benchmarks.{name}").__doc__
