"""`tsugiki pull`: an adapter from the hub into the library."""

from pathlib import Path
from typing import Annotated

import typer


def pull_command(
    repo: Annotated[str, typer.Argument(help="USER/NAME, or USER/NAME@REVISION: a branch, a tag or a commit.")],
    name: Annotated[str | None, typer.Option(help="What to call it here; the repository's name if unset.")] = None,
    library: Annotated[Path | None, typer.Option(help="A library other than your own.")] = None,
) -> None:
    """Fetch an adapter from the hub into the library, whole and verified, or not at all.

    Of the repository, an adapter's own files are fetched alone; pickled weights never.
    """
    from tsugiki.adapters.format import read_base
    from tsugiki.adapters.library import check_name, library_folder
    from tsugiki.errors import TsugikiError
    from tsugiki.hub.client import check_repo_id, pull

    repo_id, at, revision = repo.partition("@")
    check_repo_id(repo_id)
    if at and not revision:
        raise TsugikiError(f"{repo}: name a revision after the @, or leave the @ out")
    folder = (library or library_folder()) / check_name(name or repo_id.partition("/")[2])
    commit = pull(repo_id, folder, revision or None)
    base = read_base(folder).name
    typer.echo(f"{folder}: {repo_id} at {commit[:7]}, an adapter for {base or 'a base that it does not name'}")
