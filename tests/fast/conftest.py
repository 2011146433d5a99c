"""Fixtures for tests of the attention."""

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hatch_build
import pytest
import torch
from torch import Tensor

from tsugiki.fast import attention
from tsugiki.native import native

UNITS = ["AMX", "AMX in plain C", "AVX-512", "torch"]
"""What computes attention in bfloat16; the second one shows on other processors that the function for AMX is right."""


GUARD = 1 << 16
"""The bytes behind a C function's memory that it must not write."""


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the queries that block attention computed, in torch or in C, instead of the plain definition."""
    made: list[torch.Size] = []

    def counted(name: str) -> None:
        function = getattr(attention, name)

        def apply(*given: Any) -> Tensor:
            made.append(given[0].shape)
            return function.apply(*given)

        monkeypatch.setattr(attention, name, SimpleNamespace(apply=apply))

    counted("_BlockAttention")
    counted("_CAttention")
    return made


@pytest.fixture(scope="session")
def with_plain_tiles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """The C function for AMX, with the instructions for tiles in plain C."""
    if native("attention", "bfloat16") is None:
        pytest.skip("no products of bfloat16 by AVX-512 on this processor, which the rest of the function needs")
    library = tmp_path_factory.mktemp("tiles") / "plain.so"
    command = [*hatch_build.compiler_command(library), "-include", str(Path(__file__).with_name("plain_tiles.h"))]
    if shutil.which(command[0]) is None:
        pytest.skip("no C compiler")
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(library)).attention_amx_bfloat16
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    return function  # type: ignore[no-any-return]


@pytest.fixture
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of `UNITS`, which computes attention in bfloat16 during the test; its C function stays within its memory."""
    kind = {"AMX": "attention_amx", "AVX-512": "attention"}.get(request.param, "")
    function = native(kind, "bfloat16") if kind else None
    if kind and function is None:
        pytest.skip(f"this processor has no {request.param} for bfloat16, or there was no compiler")
    if request.param == "AMX in plain C":
        function = request.getfixturevalue("with_plain_tiles")
    size_of, calls = attention._memory, []

    def call(given: bytes, first: int, last: int, memory: int) -> None:
        keys, columns = struct.unpack_from("=qq", given, 48 * 8)
        behind = (ctypes.c_uint8 * GUARD).from_address(memory + 2 * size_of(keys, columns))
        ctypes.memset(behind, 0xA5, GUARD)
        function(given, first, last, memory)
        assert bytes(behind) == b"\xa5" * GUARD, "it wrote behind its memory"
        calls.append(first)

    monkeypatch.setattr(attention, "_memory", lambda keys, columns: size_of(keys, columns) + GUARD // 2)
    monkeypatch.setattr(attention, "native_for", lambda *_: function and call)
    yield str(request.param)
    assert bool(calls) == (function is not None)
