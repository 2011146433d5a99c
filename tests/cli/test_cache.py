"""`tsugiki cache`."""

import json
from pathlib import Path

import pytest

from tsugiki.base import load_model, streaming
from tsugiki.io import cache_folder, folder_size


def test_list_and_clear(run, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "nothing" in run("cache", "list")[1]
    monkeypatch.setattr(streaming, "_LEAST_BYTES", 0)
    for dtype in ("int8", "nf4"):
        load_model(base, dtype)
    (cache_folder("tokens") / "deep").mkdir(parents=True)
    (cache_folder("tokens") / "deep" / "some").write_bytes(b"12345")
    status, out, _ = run("cache", "list", "--json")
    listed = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert sorted((one["kind"], one["name"]) for one in listed if one["name"]) == [
        ("quantized", f"{Path(base).resolve()} (int8)"),
        ("quantized", f"{Path(base).resolve()} (nf4)"),
    ]
    assert [one["bytes"] for one in listed if one["kind"] == "tokens"] == [5]
    out = run("cache", "list")[1]
    assert all(word in out for word in ("(int8)", "(nf4)", "tokens", "0.0 kB", str(cache_folder(""))))

    status, _, err = run("cache", "clear", "pictures")
    assert (status, "pictures" in err) == (2, True)
    assert run("cache", "clear", "quantized")[0] == 0
    assert not cache_folder("quantized").exists()
    assert folder_size(cache_folder("")) == 5
    assert "0.0 kB" in run("cache", "clear")[1]
    assert folder_size(cache_folder("")) == 0
    assert run("cache", "clear")[0] == 0
