"""A server in a thread, with a tiny base and a library."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.calling_model import save_calling_model
from tests.tiny import save_tiny, shake
from tsugiki import LoraConfig, graft, save_adapter, ungraft
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import DEFAULT_TEMPLATE
from tsugiki.methods import IA3Config

CONTEXT = 256
LIMITS: dict[str, Any] = {"rows": 4, "cache_bytes": 1 << 20, "waiting": 16}


@dataclass
class Running:
    """A server that runs in this process."""

    url: str
    base: str
    library: Path
    engine: Any
    adapters: Any
    model: Any = field(repr=False)
    server: Any = field(repr=False)


def save_adapter_of(base: str, folder: Path, seed: int, config: Any = None) -> None:
    """Save an adapter that changes what the base says."""
    model = load_model(base)
    graft(model, config or LoraConfig(r=2, lora_alpha=64, target_modules="all-linear"))
    save_adapter(shake(model, seed), folder)
    ungraft(model)


@pytest.fixture(scope="session")
def served_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A base and a library: poet, lawyer, 歌人 (which has a chat template), turns (IA³), dora, broken, foreign."""
    home = tmp_path_factory.mktemp("served")
    base = save_tiny(home / "base", n_positions=CONTEXT)
    library = home / "library"
    for seed, name in enumerate(("poet", "lawyer", "歌人")):
        save_adapter_of(base, library / name, seed)
    (library / "歌人" / "chat_template.jinja").write_text(DEFAULT_TEMPLATE, encoding="utf-8")
    save_adapter_of(base, library / "turns", 7, IA3Config())
    save_adapter_of(base, library / "dora", 8, LoraConfig(r=2, use_dora=True))
    save_adapter_of(base, library / "broken", 5)
    weights = library / "broken" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    save_adapter_of(save_tiny(home / "other", seed=1, n_positions=CONTEXT), library / "foreign", 6)
    return base, library


@contextmanager
def start(base: str, library: Path, **settings: Any) -> Iterator[Running]:
    """Run a server."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from tsugiki.generation import Engine, Limits
    from tsugiki.serve import Access, ServedAdapters, Server, listen, new_app, workspace_routes

    model, tokenizer = load_model(base), load_tokenizer(base)
    engine = Engine(model, Limits(**{**LIMITS, **settings.get("limits", {})}))
    engine.start()
    loaded, most = settings.get("max_loaded", 2), settings.get("max_bytes", 10**9)
    adapters = ServedAdapters(engine, tokenizer, "base", {}, library, loaded, max_bytes=most)
    listening, ready = listen("127.0.0.1", 0), threading.Event()
    port = listening.getsockname()[1]
    origins, names = (frozenset(settings.get(kind, ())) for kind in ("origins", "names"))
    access = Access("127.0.0.1", settings.get("api_key"), origins, names)
    workspace = settings.get("workspace")
    views = workspace_routes(workspace, adapters) if workspace else ()
    app = new_app(engine, adapters, access, settings.get("seconds", 60), views)
    server = Server(app, settings.get("stop_seconds", 5), ready.set, app.state.end_requests)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    assert ready.wait(60)
    try:
        yield Running(f"http://127.0.0.1:{port}", base, library, engine, adapters, model, server)
    finally:
        if thread.is_alive():  # a test may have ended it
            server.end()
        thread.join(60)
        engine.stop()


@pytest.fixture(scope="module")
def own_files(served_files: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """`served_files` with a library that the tests of a module may change."""
    base, library = served_files
    own = tmp_path_factory.mktemp("library") / "adapters"
    shutil.copytree(library, own)
    return base, own


@pytest.fixture(scope="module")
def place(own_files: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A working directory, outside of which the files are, and its server, which the tests of a module share."""
    from tests.serve.workspace import serve_in

    with serve_in(tmp_path_factory.mktemp("outside") / "work", own_files) as served:
        yield served


@pytest.fixture
def no_uploads(place: Any) -> Iterator[None]:
    """Texts that a test has sent are not there for the next one."""
    yield
    for path in place.uploads.glob("*"):
        path.unlink()


@pytest.fixture
def own_place(own_files: tuple[str, Path], tmp_path: Path) -> Iterator[Any]:
    """As `place`, for one test alone."""
    from tests.serve.workspace import serve_in

    with serve_in(tmp_path / "work", own_files) as served:
        yield served


@pytest.fixture(scope="module")
def server(own_files: tuple[str, Path]) -> Iterator[Running]:
    """A server with a library of its own."""
    with start(*own_files) as served:
        yield served


@pytest.fixture
def client(server: Running) -> Any:
    """OpenAI's client of the server."""
    from tests.serve.asking import connect

    return connect(server)


@pytest.fixture(scope="session")
def calling_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A base that calls a tool, and a library of eight adapters: a0 to a7."""
    home = tmp_path_factory.mktemp("calling")
    base = save_calling_model(home / "base")
    for number in range(8):
        save_adapter_of(base, home / "library" / f"a{number}", number)
    return base, home / "library"


@pytest.fixture(scope="module")
def caller(calling_files: tuple[str, Path]) -> Iterator[Running]:
    """A server with `calling_files`."""
    with start(*calling_files, max_loaded=8, limits={"rows": 16, "cache_bytes": 1 << 24}) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for modules with the marks of `tests.serve.chromium`."""
    from playwright.sync_api import sync_playwright

    from tests.serve.chromium import PROGRAM

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """What a page has logged, thrown or asked from elsewhere; a test takes out what it expects, and no more may be."""
    found: list[str] = []
    yield found
    assert [one for one in found if "axe" not in one] == []
