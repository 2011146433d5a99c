"""`tsugiki pull`."""

from typing import Annotated

import typer

from tsugiki.cli.adapters.options import Library
from tsugiki.language import _


def pull_command(
    repo: Annotated[str, typer.Argument(help="USER/NAME, or USER/NAME@REVISION: a branch, a tag or a commit.")],
    name: Annotated[str | None, typer.Option(help="Its name in the library; if unset, the repository's name.")] = None,
    library: Library = None,
) -> None:
    """Download an adapter from the Hugging Face Hub into the library.

    Only the files of an adapter are downloaded, never pickled weights. The adapter is added to the library only if it
    is complete.
    """
    from tsugiki.adapters.files import read_base
    from tsugiki.adapters.library import check_name, library_folder
    from tsugiki.cli.tables import print_next_command
    from tsugiki.errors import TsugikiError
    from tsugiki.hub.client import check_repo_id, pull

    repo_id, at, revision = repo.partition("@")
    check_repo_id(repo_id)
    if at and not revision:
        raise TsugikiError(_("{repo} has no revision after the @; add one, or remove the @").format(repo=repo))
    folder = (library or library_folder()) / check_name(name or repo_id.partition("/")[2])
    commit = pull(repo_id, folder, revision or None)
    base = read_base(folder).name
    typer.echo(
        _("{folder}: {repo_id} at {commit}, an adapter for {base}").format(
            folder=folder, repo_id=repo_id, commit=commit[:7], base=base or _("an unnamed base")
        )
    )
    print_next_command("chat", str(folder) if library else folder.name)
