"""`tsugiki adapters verify`."""

from enum import StrEnum
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.errors import TsugikiError


class Loader(StrEnum):
    """What else may be meant to load the adapter."""

    llama_cpp = "llama.cpp"
    ollama = "ollama"
    peft = "peft"


def verify_command(
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Names in the library, or folders; the whole library if unset.")
    ] = None,
    loader: Annotated[
        Loader | None, typer.Option("--for", help="Say what this loader would refuse, too.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A base that they must fit: 'embedded', a model folder, or a hub id.")
    ] = None,
    library: Library = None,
) -> None:
    """Read adapters whole and say everything that is wrong with them; exit status 2 where anything is.

    Whether the config is known, the weights are safetensors and finite, and LoRA's pairs whole and of the ranks that
    the config says.
    """
    from tsugiki.adapters.library import adapter_folder, library_folder, read_library
    from tsugiki.adapters.verify import known_base, verify
    from tsugiki.cli.tables import say
    from tsugiki.train.progress import RunProgress

    home = library or library_folder()
    folders = {name: adapter_folder(name, home) for name in adapters or ()} or {
        entry.name: entry.folder for entry in read_library(home)
    }
    progress, broken = RunProgress(), 0
    with progress.stage("base", None):
        base = known_base(model) if model else None
    with progress.stage("adapters", len(folders)) as advance:
        for name, folder in folders.items():
            problems = verify(folder, base, loader.value if loader else None)
            broken += bool(problems)
            for problem in problems or ["nothing is wrong"]:
                say(f"{name}: {problem}")
            advance(1)
    if not folders:
        say(f"no adapters in {home} yet; `tsugiki adapters add FOLDER` copies one there, a run's for example")
    if broken:
        raise TsugikiError(f"something is wrong with {broken} of {len(folders)} adapters")
