"""How a server is run. The command line makes its flags from `ServerSettings`, so this module does not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tsugiki.annotations import Flag, Names
from tsugiki.data.read.aozora import SITE
from tsugiki.dtypes import LoadDtype


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run.

    Args:
        model: model: 'embedded', a folder, a GGUF file, or a hub id. By default the base that --adapter names.
        adapter: adapter to load at the start: a name in the library, a folder, or NAME=FOLDER. Those of the library are
            loaded when a request names them.
        host: address to listen at; one that other machines can reach needs a key.
        port: port to listen at; 0 is any free one.
        api_key: key that requests must send; TSUGIKI_API_KEY in the environment is another way.
        api_key_file: file that holds the key.
        dtype: dtype of the base's weights. Default: that in which training loads it: int8 or nf4 if the adapters were
            trained on such a base, otherwise bf16 where this machine multiplies it.
        chat_template: chat template of the base: a file, default (a plain one), or none.
        max_batch: largest number of rows computed together.
        cache_memory: largest size of the key-value cache in GB: rows times the longest row.
        prefix_memory: keys and values in GB that are kept for prompts with the same beginning; 0: none.
        max_loaded: largest number of adapters in memory.
        adapter_memory: largest size in GB of the adapters in memory.
        max_waiting: largest number of requests that wait.
        max_wait: seconds that a request may wait.
        timeout: seconds that a request may take.
        stop_timeout: seconds that running requests may go on after SIGTERM.
        allow_host: other name of the server, such as that of a proxy in front of it, as example.org.
        allow_origin: other site whose pages may use the API in a browser, as https://example.org.
        texts: folder of the texts that the page can learn from. Default: the working directory.
        aozora: where the page finds works of Aozora Bunko: URL of a site, or a mirror folder.
        allow_base_mismatch: load adapters that were trained on another base.
        trust_remote_code: run Python code that the model brings, with all your rights.
    """

    model: str | None = None
    adapter: Names = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Flag(least=0, most=65535)] = 8000
    api_key: str | None = None
    api_key_file: Path | None = None
    dtype: LoadDtype | None = None
    chat_template: str | None = None
    max_batch: Annotated[int, Flag(least=1, most=512)] = 16
    cache_memory: Annotated[float, Flag(least=0.001)] = 2.0
    prefix_memory: Annotated[float, Flag(least=0)] = 0.5
    max_loaded: Annotated[int, Flag(least=1)] = 32
    adapter_memory: Annotated[float, Flag(least=0.001)] = 2.0
    max_waiting: Annotated[int, Flag(least=1)] = 64
    max_wait: Annotated[float, Flag(least=0.1)] = 60.0
    timeout: Annotated[float, Flag(least=0.1)] = 600.0
    stop_timeout: Annotated[int, Flag(least=0)] = 30
    allow_host: Names = ()
    allow_origin: Names = ()
    texts: Path | None = None
    aozora: str = SITE
    allow_base_mismatch: bool = False
    trust_remote_code: bool = False
