"""What `tsugiki train` imports before its first step, and that its results do not depend on how it imports."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runs import TRAIN
from tsugiki.cli import fast_start

_LATE = [
    *("bitsandbytes", "datasets", "fastapi", "fsspec", "IPython", "llguidance", "matplotlib", "pandas", "peft"),
    *("pyarrow", "requests", "scipy", "sklearn", "sympy", "tensorboard", "torch._dynamo", "torch._inductor"),
    *("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.onnx"),
    *("torchvision", "transformers.pipelines", "transformers.trainer", "trl"),
]
"""What a run with the default settings does not need before its first step."""
_AT_FIRST_STEP = f"""
import sys
from tsugiki.cli.fast_start import import_libraries
import_libraries("tsugiki.training.run.stages")
from tsugiki.training.step.loop import TrainingLoop
step = TrainingLoop.train_step
def first(loop, *arguments, **named):
    step(loop, *arguments, **named)
    print("imported:", *(name for name in {_LATE!r} if name in sys.modules))
    TrainingLoop.train_step = step
TrainingLoop.train_step = first
"""
_PLAINLY = "import tsugiki.training.run.stages\n"  # so that `import_libraries` has nothing left to do
_SHAPES = """
class Shape:
    def __init__(self, sides): self.sides = sides
def double(function): return lambda number: 2 * function(number)
"""
_USER = """
from later_shapes import Shape, double
def is_shape(value: "Shape | None"): return isinstance(value, Shape)
def annotated(value: Shape | None): return value
default = Shape(3)
@double
def plus_one(number): return number + 1
"""


def _run(before: str, *arguments: str) -> str:
    code = f"{before}import sys; sys.argv = ['tsugiki', *{arguments!r}]\nfrom tsugiki.cli.main import main\nmain()"
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def test_the_shape_of_a_model_with_rotary_embeddings_needs_no_sympy():
    code = """import sys
from tsugiki.cli.fast_start import import_libraries
import_libraries("tsugiki.model.meta")
from transformers import LlamaConfig
from tsugiki.model.meta import meta_model
meta_model(LlamaConfig(num_hidden_layers=1))
print("sympy" in sys.modules)"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.slow
def test_the_first_step_needs_few_modules_and_the_same_bits_follow(base: str, tmp_path: Path):
    said = _run(_AT_FIRST_STEP, "train", "--model", base, *TRAIN, "--out", "quick")
    assert "imported:\n" in said
    _run(_PLAINLY, "train", "--model", base, *TRAIN, "--out", "plain")
    quick, plain = ((tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("quick", "plain"))
    assert quick == plain


def test_what_is_deferred_is_as_if_it_had_been_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "later_shapes.py").write_text(_SHAPES)
    (tmp_path / "later_user.py").write_text(_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "later_shapes", fast_start._DeferredModule("later_shapes"))
    import later_user as user  # type: ignore[import-not-found]

    fast_start._end_deferral()
    assert not user.is_shape(3)
    assert "later_shapes" not in sys.modules
    assert user.Shape(5).sides == 5
    assert user.default.sides == 3
    assert user.plus_one(1) == 4
    import later_shapes  # type: ignore[import-not-found]

    assert user.is_shape(later_shapes.Shape(1))
    del sys.modules["later_shapes"], sys.modules["later_user"]


def test_the_files_of_transformers_are_read_again_if_what_is_kept_is_damaged(cache: Path):
    import transformers
    from transformers.utils.import_utils import define_import_structure as structure

    models, calls = Path(transformers.__file__).parent / "models", []

    def read(path: object, *arguments: object) -> Any:
        calls.append(path)
        return structure(models, *arguments)  # type: ignore[arg-type]

    kept = cache / "imports" / "transformers.json"
    for count, damaged in enumerate(("", "{", "[]", '{"version": []}'), 1):
        assert fast_start._files_of_classes(read, models / "__init__.py") == structure(models)  # type: ignore[arg-type]
        assert fast_start._files_of_classes(read, models, "models") == structure(models, "models")  # type: ignore[arg-type]
        assert len(calls) == count
        kept.write_text(damaged)
