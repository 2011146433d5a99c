"""Manage the library of adapters; compare, verify and combine adapters.

Examples:
    tsugiki adapters add runs/ichiyo
    tsugiki adapters list
    tsugiki adapters show ichiyo
"""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from tsugiki.cli.flags import Library
from tsugiki.cli.terminal import print_line, print_next_command, print_sections, print_table
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.language import ENGLISH, _, choose_language
from tsugiki.report.table import Table

if TYPE_CHECKING:
    from tsugiki.adapters.algebra.matrices import RankReduction
    from tsugiki.cli.help import Commands

NewAdapter: TypeAlias = Annotated[
    str, typer.Option("--out", help="A new name in the library, or the path of a new folder.")
]

AllowBaseMismatch: TypeAlias = Annotated[
    bool,
    typer.Option("--allow-base-mismatch", help="Use an adapter although it was trained on another base."),
]

Weights: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The factor on the update of each adapter, such as 0.7,0.3; negative ones subtract. 1 for each if unset.",
        show_default=False,
    ),
]


def parse_weights(text: str | None) -> list[float] | None:
    """Parse the value of --weights, numbers separated by commas; None stays None."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise TsugikiError(
            "--weights is {text!r}; pass a number for each adapter, such as 0.7,0.3", text=text
        ) from error


def list_command(
    *,
    json_: bool = False,
    library: Library = None,
) -> None:
    """List the adapters in the library, and what is wrong with those that are broken.

    Only the configs and the names and shapes of the weights are read; `tsugiki adapters verify` checks everything.

    Args:
        json_: Print JSON, one object per line.

    Examples:
        tsugiki adapters list
        tsugiki adapters list --json
    """
    from tsugiki.adapters.library import library_folder, read_library
    from tsugiki.report.adapter import entry_lines, library_table

    gc.disable()  # what is read and printed lives until the command ends; looking through it takes longer than reading
    if json_:
        choose_language(ENGLISH)  # of the reasons why adapters are broken
    home = library or library_folder()
    entries = read_library(home)
    if json_:
        for line in entry_lines(entries):
            typer.echo(line)
        return
    if not entries:
        _print_empty(home)
        return
    if any(entry.info for entry in entries):
        print_table(
            library_table(entries),
            _("perplexity: on the held-out text of each adapter's run, before and after training"),
        )
    for entry in entries:
        if entry.broken:
            print_line(_("{name} is broken: {broken}", name=entry.name, broken=entry.broken))
    named = ["--library", str(library)] if library else []
    print_next_command("adapters", "show", entries[0].name, *named)


def _print_empty(home: Path) -> None:
    advice = _(
        "no adapters in {home}; `tsugiki adapters add FOLDER` copies one there, such as the folder of a run", home=home
    )
    print_line(advice)


def add_command(
    source: Path,
    *,
    name: str | None = None,
    library: Library = None,
) -> None:
    """Copy an adapter into the library. It must be complete; an existing adapter is never overwritten.

    Args:
        source: An adapter's folder, such as a run's folder or one written by PEFT.
        name: Its name in the library; if unset, the name of the folder.

    Examples:
        tsugiki adapters add runs/ichiyo
        tsugiki adapters add runs/ichiyo --name lemon
    """
    from tsugiki.adapters.library import copy_into_library, library_folder

    folder = copy_into_library(source, library or library_folder(), name)
    typer.echo(str(folder))
    print_next_command("chat", str(folder) if library else folder.name)


def rename_command(
    old: str,
    new: str,
    *,
    library: Library = None,
) -> None:
    """Rename an adapter in the library.

    Args:
        old: The current name in the library.
        new: The new name.

    Examples:
        tsugiki adapters rename ichiyo lemon
    """
    from tsugiki.adapters.library import library_folder, rename_adapter

    folder = rename_adapter(old, new, library or library_folder())
    typer.echo(str(folder))
    print_next_command("chat", str(folder) if library else folder.name)


def remove_command(
    names: list[str],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y")] = False,
    library: Library = None,
) -> None:
    """Remove adapters from the library permanently. Of a link to a folder, only the link is removed.

    Args:
        names: Names in the library.
        yes: Do not ask for confirmation.

    Examples:
        tsugiki adapters remove ichiyo
        tsugiki adapters remove old older --yes
    """
    from tsugiki.adapters.library import library_folder, member
    from tsugiki.io.atomic import remove_folder

    folders = [member(name, library or library_folder()) for name in dict.fromkeys(names)]
    if not yes:
        if not sys.stdin.isatty():
            raise TsugikiError(
                "cannot ask for confirmation (stdin is not a terminal); pass --yes to remove the adapters permanently"
            )
        if not typer.confirm(
            _("Remove {names} permanently?", names=summarise_list([folder.name for folder in folders]))
        ):
            raise typer.Exit(1)
    for folder in folders:
        remove_folder(folder)
        typer.echo(_("removed {folder}", folder=folder))


def show_command(
    adapter: str,
    *,
    html: Path | None = None,
    library: Library = None,
) -> None:
    """Show an adapter's settings, training run, results and samples, and the size of its update in each layer.

    Args:
        adapter: An adapter: a name in the library, or a folder.
        html: Also write an HTML page with plots to this file.

    Examples:
        tsugiki adapters show ichiyo
        tsugiki adapters show runs/ichiyo --html ichiyo.html
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.io.atomic import write_text
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.adapter import adapter_page, adapter_sections, inspect_adapter
    from tsugiki.report.run import RESULTS
    from tsugiki.report.sections import selected

    folder = adapter_folder(adapter, library)
    with ProgressDisplay().stage(_("layers"), None) as advance:
        report = inspect_adapter(folder, advance)
    shown = selected(adapter_sections(report), *RESULTS, "adapter", "layers", "tensors")
    print_sections(shown)
    if html:
        write_text(html, adapter_page(report))
        print_line(_("page: {path}", path=html))
    print_next_command("chat", str(folder) if library else adapter)


def verify_command(
    adapters: list[str] | None = None,
    *,
    model: str | None = None,
    library: Library = None,
) -> None:
    """Read adapters completely and list all problems; the exit status is 2 if there are any.

    The config must be supported, the weights must be finite and stored as safetensors, and LoRA factors must be
    complete and have the ranks that the config gives.

    Args:
        adapters: Names in the library, or folders; the whole library if unset.
        model: A base that the adapters must fit: 'embedded', a model folder, or a hub id.

    Examples:
        tsugiki adapters verify
        tsugiki adapters verify runs/ichiyo --model embedded
    """
    from tsugiki.adapters.library import adapter_folder, library_folder, library_names
    from tsugiki.adapters.verify import find_misfits, known_base, read_adapter_files
    from tsugiki.io.progress import ProgressDisplay

    home = library or library_folder()
    given = adapters or library_names(home)
    if not given:
        _print_empty(home)
        return
    progress, broken = ProgressDisplay(), 0
    with progress.stage("base", None):
        base = known_base(model) if model else None
    with progress.stage("adapters", len(given)) as advance:
        for name in given:
            files = read_adapter_files(adapter_folder(name, home))
            problems = list(files.problems)
            if base and not problems:
                problems = find_misfits(files, base)
            broken += bool(problems)
            for problem in problems or [_("nothing is wrong")]:
                print_line(f"{name}: {problem}")
            advance(1)
    if broken:
        raise TsugikiError("{broken} of {count} adapters have problems", broken=broken, count=len(given))


def combine_command(
    adapters: list[str],
    *,
    out: NewAdapter,
    weights: Weights = None,
    allow_base_mismatch: AllowBaseMismatch = False,
    library: Library = None,
) -> None:
    """Combine several adapters of one base into one adapter, as the exact weighted sum; its rank is the sum of theirs.

    The table shows how large each part is: ‖ΔW‖ is the root of the sum of squares of the update over all layers.

    Args:
        adapters: Names in the library, or folders.

    Examples:
        tsugiki adapters combine ichiyo soseki --weights 0.5,0.5 --out both
    """
    from tsugiki.adapters.algebra.combine import combine, load_weighted_adapters, norm, write_combined
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder

    folders, target = [adapter_folder(adapter, library) for adapter in adapters], new_adapter_folder(out, library)
    parts = load_weighted_adapters(folders, parse_weights(weights))
    lora = combine(parts, allow_base_mismatch=allow_base_mismatch, track=track_layers)
    write_combined(lora, target, folders, [part.weight for part in parts])
    rows = [[part.name, f"{part.weight:g}", f"{abs(part.weight) * norm(part.lora):.4g}"] for part in parts]
    print_table(Table([_("adapter"), _("weight"), _("‖weight · ΔW‖")], rows), f"‖ΔW‖ = {norm(lora):.4g}")
    print_written(target)


def truncate_command(
    adapter: str,
    *,
    out: NewAdapter,
    rank: int | None = None,
    energy: float | None = None,
    library: Library = None,
) -> None:
    """Reduce an adapter's rank; each layer gets the best approximation of its update that the rank allows.

    The energy of an update is the sum of squares of its elements.

    Args:
        adapter: An adapter: a name in the library, or a folder.
        rank: The new rank of every layer that has a higher one.
        energy: Instead of --rank: give each layer the smallest rank that keeps this share, such as 0.99.

    Examples:
        tsugiki adapters truncate ichiyo --rank 4 --out small
        tsugiki adapters truncate ichiyo --energy 0.99 --out small
    """
    from tsugiki.adapters.algebra.matrices import kept_energy, truncated, truncated_to_energy
    from tsugiki.adapters.library import adapter_folder, new_adapter_folder
    from tsugiki.adapters.lora_weights import read_lora_weights, write_lora_weights
    from tsugiki.adapters.metadata import Provenance, source_adapter

    folder, target = adapter_folder(adapter, library), new_adapter_folder(out, library)
    lora = read_lora_weights(folder)
    if rank is not None and energy is None:
        shorter, kept = truncated(lora, rank)
    elif energy is not None and rank is None:
        shorter, kept = truncated_to_energy(lora, energy)
    else:
        raise TsugikiError("pass either --rank or --energy")
    if all(layer.after == layer.before for layer in kept.values()):
        highest = max(layer.before for layer in kept.values())
        raise TsugikiError(
            "no layer of {adapter} would get a lower rank (the highest is {highest}); nothing was written",
            adapter=adapter,
            highest=highest,
        )
    settings = {"rank": rank} if energy is None else {"energy": energy}
    provenance = Provenance(operation="truncate", sources=(source_adapter(folder),), settings=settings)
    write_lora_weights(shorter, target, provenance)
    print_kept(kept, _("overall: {energy:.2%} of the update's energy is kept", energy=kept_energy(kept)))
    print_written(target)


def track_layers(paths: Sequence[str]) -> Iterator[str]:
    """Iterate over layers and show a progress bar in a terminal."""
    from tsugiki.io.progress import ProgressDisplay

    return ProgressDisplay().track(paths, _("layers"))


def print_kept(kept: Mapping[str, "RankReduction"], *lines: str) -> None:
    """Print a table with each layer's rank before and after and the share of its update that is kept, then `lines`."""
    rows = [[path, str(layer.before), str(layer.after), f"{layer.energy:.2%}"] for path, layer in kept.items()]
    print_table(Table([_("layer"), _("rank"), "→", _("energy kept")], rows), *lines)


def print_written(out: Path) -> None:
    """Print the folder and the size of a new adapter."""
    from tsugiki.io.file_names import ADAPTER_FILE
    from tsugiki.io.formatting import format_size

    typer.echo(f"→ {out} ({format_size((out / ADAPTER_FILE).stat().st_size)})")
    print_next_command("chat", str(out))


LIBRARY, CHECK, MAKE = "The library", "Look and check", "Make from others"
"""The groups of commands."""

ADAPTERS: "Commands" = {
    "list": (LIBRARY, list_command),
    "add": (LIBRARY, add_command),
    "rename": (LIBRARY, rename_command),
    "remove": (LIBRARY, remove_command),
    "show": (CHECK, show_command),
    "verify": (CHECK, verify_command),
    "combine": (MAKE, combine_command),
    "truncate": (MAKE, truncate_command),
}
"""The commands below `tsugiki adapters`, and their groups."""
