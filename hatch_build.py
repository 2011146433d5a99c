"""Compiles `src/tsugiki/native.c` when a wheel is built, also for `pip install -e`.

Without a compiler nothing is missing: torch computes the same, more slowly. pip shows what is printed here with `-v`
only, so `tsugiki --version` says whether the functions are there.

`python hatch_build.py` compiles it for a checkout that is not installed.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment,misc]

SOURCE = Path(__file__).parent / "src" / "tsugiki" / "native.c"
LIBRARY = SOURCE.with_name("_native.so")
# Fused multiply-adds would round differently from torch's operations.
FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")


def compile_library() -> bool:
    """Compile the library with the compiler in CC, or with `cc`; return whether this succeeded."""
    with tempfile.TemporaryDirectory(dir=SOURCE.parent, prefix=".native") as folder:
        built = Path(folder) / LIBRARY.name
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, str(SOURCE), "-o", str(built), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            print(f"native.c was not compiled, so torch computes instead: {error}", file=sys.stderr)
            return False
        if done.returncode:
            print(f"native.c was not compiled, so torch computes instead: {done.stderr}", file=sys.stderr)
            return False
        built.replace(LIBRARY)
    return True


class CompileNative(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Adds the compiled library to a wheel, which then is for this system only."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together."""
        if self.target_name == "wheel" and compile_library():
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["artifacts"].append("src/tsugiki/_native.so")


if __name__ == "__main__":
    raise SystemExit(not compile_library())
