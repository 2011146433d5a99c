"""`hatch_build.py`: how native.c is compiled on each system, for which processors, and the package's description."""

import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import hatch_build
import pytest

from tsugiki import native

ROOT = Path(hatch_build.__file__).parent


def _pretend(patch: pytest.MonkeyPatch, system: str, machine: str, built_for: str) -> None:
    """Let the build believe that it runs on another system."""
    patch.setattr(sys, "platform", system)
    patch.setattr(platform, "machine", lambda: machine)
    patch.setattr(sysconfig, "get_platform", lambda: built_for)
    patch.delenv("CC", raising=False)
    patch.delenv("ARCHFLAGS", raising=False)


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_the_build_and_the_loader_agree_on_the_name(system: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", system)
    assert runpy.run_path(native.__file__)["LIBRARY"].name == hatch_build.library_name()


def test_linux_compiles_for_every_processor_of_its_kind(monkeypatch: pytest.MonkeyPatch):
    _pretend(monkeypatch, "linux", "x86_64", "linux-x86_64")
    monkeypatch.setenv("CC", "ccache gcc -march=native")
    command = hatch_build.compiler_command(Path("out.so"))
    assert command[:2] == ["ccache", "gcc"]
    assert command.index("-march=x86-64") > command.index("-march=native")  # the last one counts
    assert hatch_build.platform_tag() == "linux_x86_64"
    _pretend(monkeypatch, "linux", "aarch64", "linux-aarch64")
    assert not any(part.startswith("-march") for part in hatch_build.compiler_command(Path("out.so")))


@pytest.mark.parametrize(
    ("machine", "python", "flags", "tag"),
    [
        ("arm64", "macosx-10.13-universal2", "", "macosx_11_0_arm64"),
        ("arm64", "macosx-11.0-arm64", "-arch arm64 -arch x86_64", "macosx_11_0_universal2"),
        ("arm64", "macosx-10.13-universal2", "-arch x86_64", "macosx_10_13_x86_64"),
    ],
)
def test_a_wheel_for_macos_is_named_after_what_was_compiled(
    machine: str, python: str, flags: str, tag: str, monkeypatch: pytest.MonkeyPatch
):
    _pretend(monkeypatch, "darwin", machine, python)
    monkeypatch.setenv("ARCHFLAGS", flags)
    command = hatch_build.compiler_command(Path("out.dylib"))
    compiled = [command[place + 1] for place, part in enumerate(command) if part == "-arch"]
    assert hatch_build.platform_tag() == tag
    assert tag.endswith(compiled[0] if len(compiled) == 1 else "universal2")
    assert f"-mmacosx-version-min={'.'.join(tag.split('_')[1:3])}" in command


def test_windows_compiles_with_clang(monkeypatch: pytest.MonkeyPatch):
    _pretend(monkeypatch, "win32", "AMD64", "win-amd64")
    command = hatch_build.compiler_command(Path("out.dll"))
    assert command[0] == "clang"
    assert not {"-fPIC", "-lm"} & set(command)  # clang refuses the first, and there is no library of the second name
    monkeypatch.setenv("CC", r"C:\Program Files\LLVM\bin\clang-cl.exe")
    command = hatch_build.compiler_command(Path("out.dll"))
    assert command[0] == r"C:\Program Files\LLVM\bin\clang-cl.exe"
    monkeypatch.setenv("CC", "/opt/llvm/bin/clang-cl")
    assert hatch_build.compiler_command(Path("out.dll"))[1] == "--driver-mode=gcc"
    assert hatch_build.platform_tag() == "win_amd64"


def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hatch_build, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not hatch_build.compile_library()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="needs objdump on x86-64")
def test_only_what_is_chosen_at_run_time_has_new_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Instructions of AVX and later begin with `v` or `tile`; others of that age come with them."""
    monkeypatch.setattr(hatch_build, "LIBRARY", tmp_path / hatch_build.LIBRARY.name)
    if not hatch_build.compile_library():
        pytest.skip("no C compiler")

    def objdump(*flags: str) -> str:
        command = ["objdump", *flags, str(hatch_build.LIBRARY)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    new: set[str] = set()
    function = ""
    for line in objdump("-d", "--no-show-raw-insn").splitlines():
        if head := re.match(r"[0-9a-f]+ <(.+)>:", line):
            function = head[1]
        elif re.match(r"\s+[0-9a-f]+:\s+(v|tile|ldtile|sttile)", line):
            new.add(function)
    checked = {name.removeprefix("has_") for name in objdump("-T").split() if name.startswith("has_")}
    allowed = {name for name in new if ".arch_x86_64_v" in name or name.split(".")[0] in checked}
    assert new == allowed
    assert new  # the compiler of this machine knows the new instructions, or else the test shows nothing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs QEMU's user mode, on Debian qemu-user")
@pytest.mark.parametrize("processor", ["Nehalem", "Haswell"])
def test_an_older_processor_gets_the_same_bits(processor: str):
    """The first has no AVX, the second no AVX-512. An instruction that it lacks would end the process by SIGILL."""
    tests = "rounding_and or large_numbers or scaling_gives or low_rank_product or coding or own_pairs"
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider",
         "tests/test_native.py", "tests/lowbit/test_nf4.py", "-k", tests],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


README = "See [Data](docs/data.md#held-out), ![a plot](docs/plot.png), [`x[0]`](src/x.py) and [PEFT](https://peft.org)."


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("", "See Data, , `x[0]` and [PEFT](https://peft.org)."),
        (
            "https://example.org/t",
            "See [Data](https://example.org/t/blob/v1/docs/data.md#held-out), "
            "![a plot](https://example.org/t/raw/v1/docs/plot.png), "
            "[`x[0]`](https://example.org/t/blob/v1/src/x.py) and [PEFT](https://peft.org).",
        ),
    ],
)
def test_no_link_of_the_package_index_is_dead(address: str, text: str):
    assert hatch_build.long_description(README, address, "v1") == text
    whole = hatch_build.long_description((ROOT / "README.md").read_text(encoding="utf-8"), address, "main")
    assert all("://" in target or target.startswith("#") for target in re.findall(r"\]\(([^)]+)\)", whole))
