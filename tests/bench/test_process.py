"""The processes of a benchmark."""

from pathlib import Path

import pytest

from tsugiki.bench import BenchmarkEntry, EntryFailed, EntryProcess, Workload


@pytest.mark.slow
def test_a_process_does_not_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for module in ("json", "torch"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EntryFailed, match="tsugiki.nothing"):
        EntryProcess("any", BenchmarkEntry("", "tsugiki.nothing:none"), Workload("any"))
    assert not (tmp_path / "ran").exists()
