"""Other operating systems, simulated by replacing what `tsugiki.io.system` knows of this one."""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path, PureWindowsPath

import pytest

from tests.errors import refused
from tsugiki.base import code_digest
from tsugiki.io import new_folder, system, write_text
from tsugiki.training.tools import memory


@pytest.mark.parametrize("times", [1, 3])
def test_windows_renames_again_while_a_scanner_reads_the_file(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    replace, attempts = Path.replace, []

    def busy(path: Path, to: Path) -> Path:
        attempts.append(path)
        if len(attempts) <= times:
            raise PermissionError(13, "the file is used by another process")
        return replace(path, to)

    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(Path, "replace", busy)
    with refused(r"a\.json.*another process") if times == 3 else nullcontext():
        write_text(tmp_path / "a.json", "{}")
    assert len(attempts) == min(times + 1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] * (times == 1)


def test_windows_flushes_files_but_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[tuple[str, int]] = []
    real = os.open
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append((Path(path).name, flags)) or real(path, flags))
    (tmp_path / "a").write_text("x", "utf-8")
    system.flush(tmp_path / "a")
    system.flush(tmp_path)
    assert opened == [("a", os.O_RDWR)]  # a descriptor that only reads cannot be flushed there


@pytest.mark.skipif(system.WINDOWS, reason="needs fcntl")
@pytest.mark.parametrize("supported", [True, False])
def test_macos_flushes_the_memory_of_the_disk(supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    calls: list[str] = []

    def control(descriptor: int, command: int) -> int:
        calls.append("full")
        if not supported:
            raise OSError(45, "not supported")  # as on a network folder
        return 0

    monkeypatch.setattr(system, "MACOS", True)
    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    system.flush(tmp_path)
    assert calls == ["full"] if supported else ["full", "fsync"]


def test_windows_ends_a_run_in_order_by_ctrl_break(monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    system.ask_to_end(7)
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    system.ask_to_end(7)
    assert sent == [(7, signal.SIGTERM), (7, 1)]


def test_the_digest_of_a_models_code_has_the_same_paths_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_text(tmp_path / "config.json", '{"auto_map": {"AutoModel": "own.modeling.Model"}}')
    with new_folder(tmp_path / "own") as folder:
        (folder / "modeling.py").write_text("x = 1", "utf-8")
    here = code_digest(tmp_path)
    relative = Path.relative_to
    monkeypatch.setattr(Path, "relative_to", lambda path, *to: PureWindowsPath(relative(path, *to)))
    assert here is not None
    assert code_digest(tmp_path) == here


def test_memory_is_known_without_the_files_of_linux(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_STATUS", Path("nothing"))
    monkeypatch.setattr(memory, "_left_in_container", lambda: None)
    monkeypatch.setattr(memory, "_accelerator", lambda device: None)
    assert (memory.resident() or 0) > 10_000_000
    assert (memory.available() or 0) > 10_000_000
    assert (memory.peak() or 0) > 10_000_000
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows, where psutil knows it; psutil knows no peak here
    assert memory._read_process_peak() == 0
