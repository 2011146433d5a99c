"""`tsugiki push`."""

import sys
from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.language import _, marked

_OUTCOMES = {
    "sent": marked("sent"),
    "updated": marked("updated; the repository's history keeps the previous version"),
    "unchanged": marked("nothing differs from the repository"),
}


def push_command(
    adapter: Annotated[str, typer.Argument(help="An adapter: a folder, or a name in the library.")],
    repo_id: Annotated[str, typer.Argument(help="The repository, USER/NAME; created if it does not exist.")],
    base: Annotated[
        str | None,
        typer.Option(help="The base's name on the hub, if the adapter names a folder; 'none' if it is not on the hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is created, make it private.")] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="The adapter's licence, by its name on the hub, such as apache-2.0.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="A language of the training text, such as ja. Can be given several times.")
    ] = None,
    message: Annotated[str, typer.Option(help="The commit message.")] = "Adapter, by tsugiki push",
    replace_card: Annotated[
        bool,
        typer.Option(
            "--replace-card", help="Replace README.md even if it was not written by tsugiki push, or was edited since."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the card and the files that would be sent, without connecting to the hub."
        ),
    ] = False,
    library: Library = None,
) -> None:
    """Upload an adapter to the Hugging Face Hub, with a model card that shows its results, samples and usage.

    The files are listed before they are sent. They contain no paths of this machine and no text of the training data.
    A model card on the hub that was written or edited by hand is kept.
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.base.resolve import EMBEDDED
    from tsugiki.cli.tables import print_next_command
    from tsugiki.hub.card import is_own_card
    from tsugiki.hub.client import check_repo_id, push, refuse_unknown_base
    from tsugiki.hub.publication import publication, published_base

    check_repo_id(repo_id)
    folder = adapter_folder(adapter, library)
    named = published_base(folder, base)
    sent = publication(folder, repo_id, named, license_id or None, language or ())
    for note in sent.notes:
        print(_("note: {note}").format(note=note), file=sys.stderr)
    for name, size in sent.sizes():
        print(_("{size:>12,} bytes  {name}").format(size=size, name=name), file=sys.stderr)
    if dry_run:
        typer.echo(sent.card, nl=False)
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
        print(_("note: {note}").format(note=note), file=sys.stderr)
    typer.echo(f"{pushed.url} ({pushed.commit[:7]}): {_(_OUTCOMES[pushed.outcome])}")
    print_next_command("pull", repo_id)
