"""`tsugiki serve`: OpenAI HTTP interface for one base and many adapters."""

import os
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.data.read.aozora import SITE
from tsugiki.dtypes import LoadDtype
from tsugiki.errors import Interrupted, TsugikiError, unreadable
from tsugiki.language import VARIABLE, _

_KEY_VARIABLE = "TSUGIKI_API_KEY"


def serve_command(
    *,
    model: str | None = None,
    adapter: list[str] | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    api_key: str | None = None,
    api_key_file: Path | None = None,
    dtype: LoadDtype | None = None,
    chat_template: str | None = None,
    max_batch: Annotated[int, typer.Option(min=1, max=512)] = 16,
    cache_memory: Annotated[float, typer.Option(min=0.001)] = 2.0,
    prefix_memory: Annotated[float, typer.Option(min=0)] = 0.5,
    max_loaded: Annotated[int, typer.Option(min=1)] = 32,
    adapter_memory: Annotated[float, typer.Option(min=0.001)] = 2.0,
    max_waiting: Annotated[int, typer.Option(min=1)] = 64,
    max_wait: Annotated[float, typer.Option(min=0.1)] = 60.0,
    timeout: Annotated[float, typer.Option(min=0.1)] = 600.0,
    stop_timeout: Annotated[int, typer.Option(min=0)] = 30,
    allow_host: list[str] | None = None,
    allow_origin: list[str] | None = None,
    texts: Path | None = None,
    aozora: str = SITE,
    allow_base_mismatch: bool = False,
    open_: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Answer requests by OpenAI's HTTP interface, with one base and many adapters in a batch.

    Args:
        model: Model: 'embedded', a folder, a GGUF file, or a hub id. By default the base that --adapter names.
        adapter: Adapter to load at the start: a name in the library, a folder, or NAME=FOLDER. Repeat for several.
            Those of the library are loaded when a request names them.
        host: Address to listen at; one that other machines can reach needs a key.
        port: Port to listen at; 0 is any free one.
        api_key: Key that requests must send; TSUGIKI_API_KEY in the environment is another way.
        api_key_file: File that holds the key.
        dtype: Dtype of the base's weights. Default: that in which training loads it: int8 or nf4 if the adapters were
            trained on such a base, otherwise bf16 where this machine multiplies it.
        chat_template: Chat template of the base: a file, default (a plain one), or none.
        max_batch: Largest number of rows computed together.
        cache_memory: Largest size of the key-value cache in GB: rows times the longest row.
        prefix_memory: Keys and values in GB that are kept for prompts with the same beginning; 0: none.
        max_loaded: Largest number of adapters in memory.
        adapter_memory: Largest size in GB of the adapters in memory.
        max_waiting: Largest number of requests that wait.
        max_wait: Seconds that a request may wait.
        timeout: Seconds that a request may take.
        stop_timeout: Seconds that running requests may go on after SIGTERM.
        allow_host: Other name of the server, such as that of a proxy in front of it, as example.org. Repeatable.
        allow_origin: Other site whose pages may use the API in a browser, as https://example.org. Repeatable.
        texts: Folder of the texts that the page can learn from. Default: the working directory.
        aozora: Where the page finds works of Aozora Bunko: URL of a site, or a mirror folder.
        allow_base_mismatch: Load adapters that were trained on another base.
        open_: Show the server's page in the browser.
        trust_remote_code: Run Python code that the model brings, with all your rights.
    """

    try:
        import_libraries("tsugiki.serve.server")
        from tsugiki.serve.server import ServerSettings, check_access, listen, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        message = _("tsugiki serve needs {module}; install it by pip install 'tsugiki[serve]'")
        raise TsugikiError(message.format(module=error.name)) from error
    from tsugiki.adapters.library import library_folder
    from tsugiki.base.loading import default_device, load_model, load_tokenizer
    from tsugiki.data.chat import use_template
    from tsugiki.generation.request import Limits
    from tsugiki.serve.security import Access, check_hosts, check_origins
    from tsugiki.serve.train_view import Workspace

    if texts is not None and not texts.is_dir():
        raise TsugikiError(_("--texts {folder}: there is no such folder").format(folder=texts))
    key = _key(api_key, api_key_file)
    check_access(host, key)
    model = model or _named_base(adapter or [])
    name = Path(model).resolve().name if Path(model).exists() else model
    folders = _folders(adapter or [], name)
    settings = ServerSettings(
        Access(host, key, check_origins(allow_origin or []), check_hosts(allow_host or [])),
        Limits(max_batch, round(cache_memory * 1e9), max_waiting, round(prefix_memory * 1e9), max_wait),
        max_loaded,
        round(adapter_memory * 1e9),
        timeout,
        stop_timeout,
        allow_base_mismatch,
        folders,
        Workspace(model, Path.cwd(), texts or Path(), aozora),
    )
    dtype = dtype or _dtype_of_training(model, folders)
    listening = listen(host, port)
    base = load_model(model, dtype, trust_remote_code=trust_remote_code).to(default_device())
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    use_template(tokenizer, chat_template)

    def ready(url: str) -> None:
        page = f"{url}/?lang={os.environ[VARIABLE]}" if os.environ.get(VARIABLE) else url
        message = _("{name} in {dtype} at {url}/v1, page at {page} (Ctrl-C stops it)")
        typer.echo(message.format(name=name, dtype=dtype, url=url, page=page))
        if open_:
            webbrowser.open(page)

    try:
        serve(base, tokenizer, name, library_folder(), settings, listening, ready)
    except (Interrupted, KeyboardInterrupt):
        typer.echo(_("stopped"))


def _key(api_key: str | None, file: Path | None) -> str | None:
    """Return the API key from the flag, the file or the environment; None if there is none.

    It leaves the environment, so that no process that the server starts has it.
    """
    of_environment = os.environ.pop(_KEY_VARIABLE, None)
    if api_key is not None and file is not None:
        raise TsugikiError(_("pass --api-key or --api-key-file, not both"))
    if file is None:
        return of_environment if api_key is None else api_key
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error


def _dtype_of_training(model: str, folders: Mapping[str, Path]) -> LoadDtype:
    """Return the dtype in which training loads a base for these adapters."""
    from tsugiki.dtypes import preferred_compute_dtype
    from tsugiki.training.score.targets import EvaluationTarget, dtype_of

    trained_on = dtype_of([EvaluationTarget(model, folder) for folder in folders.values()])
    return preferred_compute_dtype() if trained_on == "fp32" else trained_on


def _named_base(given: Sequence[str]) -> str:
    """Return the base that the values of --adapter name."""
    from tsugiki.adapters.files import named_base
    from tsugiki.adapters.library import adapter_folder

    folders = [adapter_folder(value.partition("=")[2] or value) for value in given]
    bases = sorted({base for folder in folders if (base := named_base(folder))})
    if len(bases) == 1:
        return bases[0]
    if bases:
        raise TsugikiError(_("the adapters name several bases: {bases}; pass --model").format(bases=", ".join(bases)))
    raise TsugikiError(_("no --adapter names a base; pass --model"))


def _folders(given: Sequence[str], base: str) -> dict[str, Path]:
    """Return the folders of the adapters that are loaded at the start, by the names that requests use."""
    from tsugiki.adapters.library import adapter_folder, check_name

    folders: dict[str, Path] = {}
    for value in given:
        name, separator, path = value.partition("=")
        folder = adapter_folder(path if separator else value)
        called = check_name(name if separator else folder.resolve().name)
        if called == base or called in folders:
            message = _("two models would be called {name!r}; pass --adapter NAME=FOLDER with another name")
            raise TsugikiError(message.format(name=called))
        folders[called] = folder
    return folders
