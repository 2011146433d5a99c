"""`tsugiki adapters verify`."""

from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.errors import TsugikiError
from tsugiki.export import Loader
from tsugiki.language import _

_SETTINGS = (".yaml", ".yml")


def verify_command(
    adapters: Annotated[
        list[str] | None,
        typer.Argument(help="Names in the library, folders, or a run's settings (.yaml); the whole library if unset."),
    ] = None,
    loader: Annotated[
        Loader | None, typer.Option("--for", help="Also list what this program cannot load.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A base that the adapters must fit: 'embedded', a model folder, or a hub id.")
    ] = None,
    library: Library = None,
) -> None:
    """Read adapters completely and list all problems; the exit status is 2 if there are any.

    The config must be supported, the weights must be finite and stored as safetensors, and LoRA factors must be
    complete and have the ranks that the config gives. --for also lists why another program cannot load an adapter or,
    before training, the adapter that a run's settings would give.
    """
    from tsugiki.adapters.library import adapter_folder, library_folder, read_library
    from tsugiki.adapters.verify import find_misfits, known_base, read_adapter_files
    from tsugiki.base.loading import load_meta_model
    from tsugiki.cli.tables import print_line
    from tsugiki.export.loaders import incompatibilities, incompatibilities_before_training
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.config_files import load_config

    home = library or library_folder()
    given = adapters or [entry.name for entry in read_library(home)]
    if not given:
        print_line(
            _(
                "no adapters in {home}; `tsugiki adapters add FOLDER` copies one there, such as the folder of a run"
            ).format(home=home)
        )
        return
    progress, broken = ProgressDisplay(), 0
    with progress.stage("base", None):
        base = known_base(model) if model else None
    with progress.stage("adapters", len(given)) as advance:
        for name in given:
            if name.endswith(_SETTINGS):
                if loader is None:
                    raise TsugikiError(
                        _(
                            "{name} holds a run's settings, not an adapter; pass --for with the program that must load "
                            "the adapter"
                        ).format(name=name)
                    )
                settings = load_config(Path(name), {"model": model} if model else {})
                shape = load_meta_model(settings.model)
                problems = incompatibilities_before_training(loader, settings.adapter_config, shape)
            else:
                files = read_adapter_files(adapter_folder(name, home))
                problems = list(files.problems)
                if base and not problems:
                    problems = find_misfits(files, base)
                if loader and not problems:
                    problems = incompatibilities(loader, files, model)
            broken += bool(problems)
            for problem in problems or [_("nothing is wrong")]:
                print_line(f"{name}: {problem}")
            advance(1)
    if broken:
        raise TsugikiError(_("{broken} of {count} adapters have problems").format(broken=broken, count=len(given)))
