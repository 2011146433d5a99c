"""`tsugiki adapters truncate`."""

from pathlib import Path

from tests.files import json_of
from tests.tiny import logits, relative_error
from tsugiki import load_adapter
from tsugiki.base import load_model


def test_truncated(run, base: str, pair: tuple[str, str], library: Path):
    status, out, _ = run("adapters", "truncate", "b", "--rank", "2", "--out", "b2")
    assert status == 0
    assert "overall: " in out
    assert json_of(library / "b2" / "adapter_config.json")["r"] == 2
    shorter, whole = (logits(load_adapter(load_model(base), library / name)) for name in ("b2", "b"))
    assert relative_error(shorter, whole) > 1e-3
    assert run("adapters", "truncate", "b", "--energy", "0.5", "--out", "half")[0] == 0
    made = json_of(library / "half" / "tsugiki.json")["provenance"]
    assert (made["operation"], made["settings"]) == ("truncate", {"energy": 0.5})
