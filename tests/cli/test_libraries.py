"""What `tsugiki train` imports before its first step, and that its results do not depend on how it imports."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.runs import TRAIN
from tsugiki.cli.transformers_files import _from_json, _to_json

_LATE = [
    *("bitsandbytes", "datasets", "IPython", "matplotlib", "pandas", "peft", "scipy", "sklearn", "sympy"),
    *("tensorboard", "torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "torch.distributed.fsdp"),
    *("torch.distributed.tensor", "transformers.trainer", "trl"),
]
"""What a run with the default settings does not need before its first step."""
_AT_FIRST_STEP = """
import sys
from tsugiki.cli.deferred import changed_after_import
def change(module):
    step = module.TrainingLoop.train_step
    def first(loop, *arguments, **named):
        step(loop, *arguments, **named)
        print("imported:", *(name for name in %r if name in sys.modules))
        module.TrainingLoop.train_step = step
    module.TrainingLoop.train_step = first
hook = changed_after_import("tsugiki.training.loop", change)
hook.__enter__()
"""
_PLAINLY = "import tsugiki.training.run\n"  # so that `import_libraries` has nothing left to do


def _run(before: str, *arguments: str) -> str:
    code = f"{before}import sys; sys.argv = ['tsugiki', *{arguments!r}]\nfrom tsugiki.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_first_step_needs_few_modules_and_the_same_bits_follow(base: str, tmp_path: Path):
    said = _run(_AT_FIRST_STEP % _LATE, "train", "--model", base, *TRAIN, "--out", "quick")
    assert "imported:\n" in said
    _run(_PLAINLY, "train", "--model", base, *TRAIN, "--out", "plain")
    quick, plain = ((tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("quick", "plain"))
    assert quick == plain


def test_what_the_files_of_transformers_define_is_kept_exactly(tmp_path: Path):
    folder = tmp_path / "models" / "shape"
    folder.mkdir(parents=True)
    (folder / "modeling_shape.py").write_text('__all__ = ["ShapeModel", "ShapeConfig"]\n')
    (folder / "tokenization_shape.py").write_text('__all__ = ["ShapeTokenizer"]\n')
    from transformers.utils.import_utils import create_import_structure_from_path

    found = create_import_structure_from_path(tmp_path / "models")
    assert found
    assert _from_json(_to_json(found)) == found


def test_a_damaged_or_old_memory_of_files_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import transformers

    from tsugiki.cli.transformers_files import _remember

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    models, calls = Path(transformers.__file__).parent / "models", []
    module = ModuleType("import_utils")

    def read(path: object) -> dict[object, object]:
        calls.append(path)
        return {"shape": {frozenset({"torch"}): {"modeling_shape": {"ShapeModel"}}}}

    def again() -> object:
        module.create_import_structure_from_path = read  # type: ignore[attr-defined]
        _remember(module)
        return module.create_import_structure_from_path(models)

    kept = tmp_path / "tsugiki" / "imports" / "transformers.json"
    expected = read(None)
    assert again() == again() == expected
    assert len(calls) == 2  # that of `expected`, and the first one
    for damaged in ("", "{", "[]", '{"version": []}', kept.read_text().replace("shape", "x").replace(":", ";")):
        kept.write_text(damaged)
        assert again() == again() == expected
    assert len(calls) == 7
