"""`tsugiki push`: an adapter, with its card, to the hub."""

import sys
from pathlib import Path
from typing import Annotated

import typer

_OUTCOMES = {
    "sent": "sent",
    "updated": "updated; its history keeps what was there",
    "unchanged": "nothing differs from what is there",
}


def push_command(
    adapter: Annotated[str, typer.Argument(help="A folder, or a name in the library.")],
    repo_id: Annotated[str, typer.Argument(help="Where to, USER/NAME; it is created if need be.")],
    base: Annotated[
        str | None, typer.Option(help="The base's name on the hub, if the adapter knows it as a folder; or 'none'.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository is for its owners alone.")] = False,
    license_id: Annotated[
        str | None, typer.Option("--license", help="Of the adapter, by its name on the hub, such as apache-2.0.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Of the text, such as ja; repeatable.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Adapter, by tsugiki push",
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a README.md that a person wrote or edited.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card, and what would be sent; nothing is sent, nobody asked.")
    ] = False,
    library: Annotated[Path | None, typer.Option(help="Where names are looked up, if not in your own library.")] = None,
) -> None:
    """Send an adapter to the hub, with a card written from its run: figures, samples, and how to use it.

    What is sent is listed first. No path of this machine is in it, and no text of the data. A card on the hub that
    somebody wrote or edited stays.
    """
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.base.loading import EMBEDDED
    from tsugiki.hub.card import is_own_card
    from tsugiki.hub.client import check_repo_id, push, refuse_unknown_base
    from tsugiki.hub.publication import publication, published_base

    check_repo_id(repo_id)
    folder = adapter_folder(adapter, library)
    named = published_base(folder, base)
    sent = publication(folder, repo_id, named, license_id or None, language or ())
    for note in sent.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, size in sent.sizes():
        print(f"{size:>12,} bytes  {name}", file=sys.stderr)
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
        said = "README.md there was written or edited by a person, and stays; --replace-card replaces it"
        print(f"note: {said}", file=sys.stderr)
    typer.echo(f"{pushed.url} ({pushed.commit[:7]}): {_OUTCOMES[pushed.outcome]}")
