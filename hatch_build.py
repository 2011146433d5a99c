"""Compiles `src/tsugiki/native.c` when a wheel is built, also for `pip install -e`.

Without a compiler, or with the environment variable `TSUGIKI_NO_NATIVE=1`, nothing is missing: torch computes the same,
more slowly. pip shows what is printed here with `-v` only, so `tsugiki --version` says whether the functions are there.

`python hatch_build.py` compiles it for a checkout that is not installed.
"""

import itertools
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path, PurePath
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # run as a script
    BuildHookInterface = MetadataHookInterface = object  # type: ignore[assignment,misc]

ROOT = Path(__file__).parent
SOURCE = ROOT / "src" / "tsugiki" / "native.c"
# Fused multiply-adds would round differently from torch's operations.
FLAGS = ("-O3", "-shared", "-ffp-contract=off")


def library_name() -> str:
    """Return the name of the compiled library on this system, which is also in `src/tsugiki/native.py`."""
    return "_native" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


LIBRARY = SOURCE.with_name(library_name())


def compiler_command(built: Path) -> list[str]:
    """Return the command that compiles the library, with the compiler in CC, or else `cc`, on Windows `clang`.

    Every x86-64 processor can run the library: `native.c` has functions for newer instructions beside the others, and
    chooses among them when it runs.
    """
    windows, macos = sys.platform == "win32", sys.platform == "darwin"
    chosen = os.environ.get("CC") or ("clang" if windows else "cc")
    command = [chosen] if windows else shlex.split(chosen)  # a path on Windows has backslashes and spaces
    if PurePath(command[0]).stem == "clang-cl":
        command.append("--driver-mode=gcc")  # the flags of clang, not those of Microsoft's compiler
    command += FLAGS
    if macos:
        architectures = _macos_architectures()
        command += [part for name in architectures for part in ("-arch", name)]
        command.append(f"-mmacosx-version-min={_macos_version(architectures)}")
    elif platform.machine() in ("x86_64", "AMD64"):
        command += ["-march=x86-64", "-mtune=generic"]
    command += [str(SOURCE), "-o", str(built)]
    return command if windows else [*command, "-fPIC", "-lm"]


def platform_tag() -> str:
    """Return the platform of a wheel with the library, such as `linux_x86_64` or `macosx_11_0_arm64`."""
    tag = sysconfig.get_platform()
    if sys.platform == "darwin":
        architectures = _macos_architectures()
        which = architectures[0] if len(architectures) == 1 else "universal2"
        tag = f"macosx-{_macos_version(architectures)}-{which}"
    return tag.replace("-", "_").replace(".", "_")


def compile_library() -> bool:
    """Compile the library; return whether this succeeded."""
    with tempfile.TemporaryDirectory(dir=SOURCE.parent, prefix=".native") as folder:
        built = Path(folder) / LIBRARY.name
        try:
            done = subprocess.run(compiler_command(built), capture_output=True, text=True, errors="replace")
        except OSError as error:
            print(f"native.c was not compiled, so torch computes instead: {error}", file=sys.stderr)
            return False
        if done.returncode:
            print(f"native.c was not compiled, so torch computes instead: {done.stderr}", file=sys.stderr)
            return False
        built.replace(LIBRARY)
    return True


def _macos_architectures() -> list[str]:
    """Return what ARCHFLAGS names, as `-arch arm64`, or else this machine's: Python itself may be for both."""
    flags = shlex.split(os.environ.get("ARCHFLAGS", ""))
    named = [name for flag, name in itertools.pairwise(flags) if flag == "-arch"]
    return named or [platform.machine()]


def _macos_version(architectures: list[str]) -> str:
    """Return the oldest macOS that Python supports; there is none below 11.0 for arm64."""
    version = sysconfig.get_platform().split("-")[1]
    return "11.0" if architectures == ["arm64"] and int(version.split(".")[0]) < 11 else version


def long_description(readme: str, address: str, files: str) -> str:
    """Return the README with absolute links, or without links and pictures of the repository if it has no address."""

    def replaced(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        if not address:
            return "" if picture else text
        return f"{picture}[{text}]({address}/{'raw' if picture else 'blob'}/{files}/{target})"

    return re.sub(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)]+)\)", replaced, readme)


class DescribeProject(MetadataHookInterface):  # type: ignore[misc]
    """Adds the long description and the addresses to the metadata, from the address at `[tool.tsugiki]`."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Add `readme` and `urls`."""
        with (ROOT / "pyproject.toml").open("rb") as file:
            place = tomllib.load(file)["tool"]["tsugiki"]
        address, files = place["address"].rstrip("/"), place["files"]
        text = long_description((ROOT / "README.md").read_text(encoding="utf-8"), address, files)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {}
        if address:
            pages = {"Source": "", "Issues": "/issues", "Changelog": f"/blob/{files}/CHANGELOG.md"}
            metadata["urls"] = {name: address + page for name, page in pages.items()}
        if place["site"]:
            metadata["urls"]["Documentation"] = place["site"]


class CompileNative(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Adds the compiled library to a wheel, which then is for this system only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        if self.target_name != "wheel" or os.environ.get("TSUGIKI_NO_NATIVE", "0") not in ("", "0"):
            return
        if compile_library():
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["artifacts"].append(f"src/tsugiki/{LIBRARY.name}")


if __name__ == "__main__":
    raise SystemExit(not compile_library())
