"""Commands that make files for other programs and for the hub: `tsugiki merge`, `export`, `push` and `pull`."""

import sys
from pathlib import Path
from typing import Literal

import typer

from tsugiki.cli.adapters import AllowBaseMismatch, Weights, parse_weights
from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import Library
from tsugiki.cli.terminal import print_line, print_next_command
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked


def merge_command(
    *,
    adapter: list[str],
    out: Path,
    model: str | None = None,
    weights: Weights = None,
    verify: bool = True,
    allow_base_mismatch: AllowBaseMismatch = False,
) -> None:
    """Merge adapters into their base and write an ordinary Transformers model, in the dtypes of the base's files.

    Args:
        adapter: An adapter folder, or a name in the library. Can be given several times: the updates are summed.
        out: A new folder for the merged model.
        model: The base: 'embedded', a model folder, a GGUF file, or a hub id. Default: what the adapter names.
        verify: Compare logits before and after; this loads the whole model.

    Examples:
        tsugiki merge --adapter runs/ichiyo --out ichiyo-model
        tsugiki merge --model embedded --adapter a --adapter b --weights 0.7,0.3 --out both
    """

    import_libraries("tsugiki.training.run.merge")
    from tsugiki.adapters.files import named_base
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.cli.summary import print_merge
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.run.merge import Merge, merge_into_folder

    folders = [adapter_folder(name) for name in adapter]
    base = model or named_base(folders[0])
    if base is None:
        raise TsugikiError("{adapter} does not name its base; give the base as --model", adapter=adapter[0])
    merge = Merge(base, folders, parse_weights(weights), allow_base_mismatch, verify)
    print_merge(out, merge_into_folder(merge, out, ProgressDisplay()))
    print_next_command("chat", "--model", str(out))


def export_command(
    adapter: str,
    *,
    gguf: Path,
    model: str | None = None,
    merged: bool = False,
    base_gguf: str | None = None,
    dtype: GgufDtype | None = None,
    allow_base_mismatch: bool = False,
    library: Library = None,
) -> None:
    """Export an adapter as a GGUF file for llama.cpp, alone or merged into a GGUF file of its base.

    llama.cpp loads an adapter together with its base (llama-cli -m BASE --lora ADAPTER). Ollama, and adapters that
    llama.cpp does not know, such as one on a shared output head, need the merged file.

    Args:
        gguf: The new GGUF file. A merged one has a Modelfile for Ollama beside it.
        adapter: An adapter: a folder, such as a run's, or a name in the library.
        model: The adapter's base: 'embedded', a folder, a GGUF file or a hub id. By default the one that the adapter
            names.
        merged: Merge the adapter into a GGUF file of its base.
        base_gguf: The GGUF file of the base, or USER/NAME/FILE.gguf on the hub. Known for the embedded model and for
            bases that are GGUF files.
        dtype: Type of the merged tensors, q8_0 by default; the others keep theirs. An adapter alone is in f32.
        allow_base_mismatch: Export an adapter that was trained on another base.

    Examples:
        tsugiki export runs/ichiyo --gguf ichiyo.gguf
        tsugiki export runs/ichiyo --merged --gguf model.gguf
        tsugiki export runs/support --merged --base-gguf smollm2.gguf --gguf support.gguf
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.export.gguf_adapter import MergedOnlyError

    folder = adapter_folder(adapter, library)
    if not merged and base_gguf is None:
        if dtype is not None:
            raise TsugikiError("an adapter alone is exported in f32; --merged takes --dtype")
        try:
            _export_adapter(folder, gguf, model, allow_base_mismatch)
            return
        except MergedOnlyError as error:
            if not sys.stdin.isatty():
                raise
            print_line(str(error))
            if not typer.confirm(_("Merge the adapter into a GGUF file of its base?"), default=True):
                raise typer.Exit(1) from error
    _export_merged(folder, gguf, model, base_gguf, dtype or "q8_0", allow_base_mismatch)


def _export_adapter(folder: Path, gguf: Path, base: str | None, allow_base_mismatch: bool) -> None:
    from tsugiki.export.gguf_adapter import export_gguf_adapter
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    with ProgressDisplay().stage(_("exporting"), None):  # computing the base's fingerprint reads all of its weights
        done = export_gguf_adapter(folder, gguf, base, allow_base_mismatch=allow_base_mismatch)
    message = _("{gguf}: {layers} layers, rank {ranks}, alpha {alpha:g}, {size}; llama-cli -m BASE --lora {gguf}")
    size = format_size(done.bytes)
    typer.echo(message.format(gguf=gguf, layers=done.layers, ranks=done.ranks, alpha=done.alpha, size=size))


def _export_merged(
    folder: Path, gguf: Path, model: str | None, base_gguf: str | None, dtype: GgufDtype, allow_base_mismatch: bool
) -> None:
    """Merge an adapter into a GGUF file of its base, and print what was written."""
    from tsugiki.adapters.files import named_base
    from tsugiki.base.resolve import gguf_of_base
    from tsugiki.export.gguf_merge import merge_into_gguf
    from tsugiki.io.formatting import format_size
    from tsugiki.io.progress import ProgressDisplay

    base = gguf_of_base(model or named_base(folder), base_gguf)
    size = base.stat().st_size
    with ProgressDisplay().stage(_("exporting"), size) as advance:
        written = merge_into_gguf(
            folder, base, gguf, dtype, model_name=model, allow_base_mismatch=allow_base_mismatch, advance=advance
        )
    message = _(
        "{gguf}: {merged} of {tensors} tensors merged in {dtype}, {size}; for Ollama: {modelfile}",
        gguf=gguf,
        merged=written.merged,
        tensors=written.tensors,
        dtype=dtype,
        size=format_size(written.bytes),
        modelfile=gguf.with_suffix(".Modelfile"),
    )
    typer.echo(message)
    if written.bytes > 1.2 * size:
        message = _(
            "the base's file has {base}: merged tensors are never written in fewer than 8 bits, since a small update "
            "would be lost; the base's file with --lora is smaller, if llama.cpp can load the adapter (no --merged)",
            base=format_size(size),
        )
        typer.echo(message)
    print_next_command("chat", "--model", str(gguf))


_OUTCOMES = {
    "sent": marked("sent"),
    "updated": marked("updated; the repository's history keeps the previous version"),
    "unchanged": marked("nothing differs from the repository"),
}


def push_command(
    adapter: str,
    repo_id: str,
    *,
    base: str | None = None,
    private: bool = False,
    license_: str | None = None,
    language: list[str] | None = None,
    card_lang: Literal["en", "ja"] = "en",
    message: str = "Adapter, by tsugiki push",
    replace_card: bool = False,
    dry_run: bool = False,
    library: Library = None,
) -> None:
    """Upload an adapter to the Hugging Face Hub, with a model card that shows its results, samples and usage.

    The files are listed before they are sent. They contain no paths of this machine and no text of the training data.
    A model card on the hub that was written or edited by hand is kept.

    Args:
        adapter: An adapter: a folder, or a name in the library.
        repo_id: The repository, USER/NAME; created if it does not exist.
        base: The base's name on the hub, if the adapter names a folder; 'none' if it is not on the hub.
        private: If the repository is created, make it private.
        license_: The adapter's licence, by its name on the hub, such as apache-2.0.
        language: A language of the training text, such as ja. Can be given several times. Default: ja if the samples
            have kana.
        card_lang: Language of the model card.
        message: The commit message.
        replace_card: Replace README.md even if it was not written by tsugiki push, or was edited since.
        dry_run: Print the card and the files that would be sent, without connecting to the hub.

    Examples:
        tsugiki push runs/ichiyo USER/ichiyo --dry-run
        tsugiki push runs/ichiyo USER/ichiyo --license cc0-1.0 --language ja
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.base.resolve import EMBEDDED
    from tsugiki.hub.card import is_own_card
    from tsugiki.hub.client import check_repo_id, push, refuse_unknown_base
    from tsugiki.hub.publication import publication, published_base

    check_repo_id(repo_id)
    folder = adapter_folder(adapter, library)
    named = published_base(folder, base)
    sent = publication(folder, repo_id, named, license_ or None, language or (), card_lang)
    for note in sent.notes:
        print(_("note: {note}", note=note), file=sys.stderr)
    for name, size in sent.sizes():
        print(_("{size:>12,} bytes  {name}", size=size, name=name), file=sys.stderr)
    if dry_run:
        typer.echo(sent.card, nl=False)
        print_next_command(*(word for word in sys.argv[1:] if word != "--dry-run"), err=True)
        return
    if named not in (None, EMBEDDED):
        refuse_unknown_base(named)
    pushed = push(
        sent.files,
        repo_id,
        may_replace_card=(lambda text: True) if replace_card else is_own_card,
        private=private,
        message=message,
    )
    if pushed.kept_card:
        note = _("README.md in the repository was written or edited by hand and is kept; --replace-card replaces it")
        print(_("note: {note}", note=note), file=sys.stderr)
    typer.echo(f"{pushed.url} ({pushed.commit[:7]}): {_(_OUTCOMES[pushed.outcome])}")
    print_next_command("pull", repo_id)


def pull_command(
    repo: str,
    *,
    name: str | None = None,
    library: Library = None,
) -> None:
    """Download an adapter from the Hugging Face Hub into the library.

    Only the files of an adapter are downloaded, never pickled weights. The adapter is added to the library only if it
    is complete.

    Args:
        repo: USER/NAME, or USER/NAME@REVISION: a branch, a tag or a commit.
        name: Its name in the library; if unset, the repository's name.

    Examples:
        tsugiki pull USER/ichiyo
        tsugiki pull USER/ichiyo@main --name ichiyo
    """
    from tsugiki.adapters.files import read_base
    from tsugiki.adapters.library import check_name, library_folder
    from tsugiki.hub.client import check_repo_id, pull

    repo_id, at, revision = repo.partition("@")
    check_repo_id(repo_id)
    if at and not revision:
        raise TsugikiError("{repo} has no revision after the @; add one, or remove the @", repo=repo)
    folder = (library or library_folder()) / check_name(name or repo_id.partition("/")[2])
    commit = pull(repo_id, folder, revision or None)
    base = read_base(folder).name
    message = _(
        "{folder}: {repo_id} at {commit}, an adapter for {base}",
        folder=folder,
        repo_id=repo_id,
        commit=commit[:7],
        base=base or _("an unnamed base"),
    )
    typer.echo(message)
    print_next_command("chat", str(folder) if library else folder.name)
