"""`tsugiki serve`: OpenAI HTTP interface for one base and many adapters."""

import os
import webbrowser
from typing import Annotated

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import FlagsOf, Given
from tsugiki.errors import Interrupted, TsugikiError
from tsugiki.language import VARIABLE, _


def serve_command(
    *, settings: Annotated[Given, FlagsOf("tsugiki.serve.settings.ServerSettings")], open_: bool = False
) -> None:
    """Answer requests by OpenAI's HTTP interface, with one base and many adapters in a batch.

    Args:
        open_: Show the server's page in the browser.

    Examples:
        tsugiki serve --model embedded
        tsugiki serve --model embedded --adapter ichiyo=runs/ichiyo --port 8080
        tsugiki serve --model embedded --host 0.0.0.0 --api-key-file key.txt
    """
    try:
        import_libraries("tsugiki.serve.server")
        from tsugiki.serve.server import serve
        from tsugiki.serve.settings import ServerSettings
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        message = _("tsugiki serve needs {module}; install it by pip install 'tsugiki[serve]'")
        raise TsugikiError(message.format(module=error.name)) from error

    def ready(name: str, dtype: str, url: str) -> None:
        page = f"{url}/?lang={os.environ[VARIABLE]}" if os.environ.get(VARIABLE) else url
        message = _("{name} in {dtype} at {url}/v1, page at {page} (Ctrl-C stops it)")
        typer.echo(message.format(name=name, dtype=dtype, url=url, page=page))
        if open_:
            webbrowser.open(page)

    try:
        serve(ServerSettings(**settings), ready)
    except (Interrupted, KeyboardInterrupt):
        typer.echo(_("stopped"))
