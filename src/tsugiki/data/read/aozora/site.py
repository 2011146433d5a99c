"""Download works from Aozora Bunko's site, or from a site with the same layout, with a cache."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.data.read.aozora.index import INDEX, FileMissing, IndexEntry, read_index
from tsugiki.errors import TsugikiError
from tsugiki.io.archives import is_whole_zip
from tsugiki.io.atomic import make_folder, write_bytes
from tsugiki.io.formatting import format_size
from tsugiki.language import _

if TYPE_CHECKING:
    import httpx2

MAX_ZIP = 50_000_000
"""The largest zip that is read, in bytes: a text and its illustrations, or the index."""


_ATTEMPTS = 4


class SiteUnreachable(TsugikiError):
    """The site cannot be reached, or answers with an error other than "not found"."""


class Site:
    """A site with the layout of Aozora Bunko. Requests are spaced out to keep the load low.

    Cached texts are never downloaded again. The cached index is renewed after a week if the site can be reached.
    """

    def __init__(self, url: str, cache: Path, pause: float = 0.5) -> None:
        """Initialise the site, with a folder for downloaded files.

        `pause` is the shortest time between requests in seconds; it doubles with each failed attempt.
        """
        self.url = url.rstrip("/")
        self.prefix = f"{self.url}/"
        self.cache = cache / self.url.partition("://")[2].replace(":", "_")
        self.pause = pause
        self._next = 0.0
        self._client: httpx2.Client | None = None

    def entries(self) -> list[IndexEntry]:
        """Return the works in the site's index."""
        path = f"index_pages/{INDEX}.zip"
        return read_index(self._cached(path, max_age=7 * 86_400), f"{self.url}/{path}")

    def fetch(self, entry: IndexEntry) -> bytes:
        """Return an entry's zip, from the cache if possible."""
        return self._cached(entry.path)

    def _cached(self, path: str, max_age: float | None = None) -> bytes:
        cached = self.cache / path
        kept = _read_whole(cached)
        if kept is not None and (max_age is None or time.time() - cached.stat().st_mtime < max_age):
            return kept
        try:
            data = self._get(f"{self.url}/{path}")
        except SiteUnreachable:
            if kept is not None:
                return kept
            raise
        if is_whole_zip(data):  # a damaged file is not cached, so that the next run downloads it again
            make_folder(cached.parent)
            write_bytes(cached, data)
        return data

    def _get(self, url: str) -> bytes:
        import httpx2

        if self._client is None:
            self._client = httpx2.Client(timeout=30, follow_redirects=True, headers={"User-Agent": "tsugiki"})
        for attempt in range(_ATTEMPTS):
            time.sleep(max(0.0, self._next - time.monotonic()))
            try:
                with self._client.stream("GET", url) as response:
                    status = response.status_code
                    content = _read(response, url) if response.is_success else b""
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                problem = _(
                    "cannot be reached ({error}); check the address and the network",
                    error=error or type(error).__name__,
                )
            else:
                if response.is_success:
                    self._next = time.monotonic() + self.pause
                    return content
                if status in (404, 410):
                    self._next = time.monotonic() + self.pause
                    raise FileMissing("{url}: the site answers {status}; try again later", url=url, status=status)
                problem = _("the site answers {status}", status=status)
                if status < 500 and status != 429:
                    break
            self._next = time.monotonic() + self.pause * 2**attempt
        raise SiteUnreachable(
            "{url}: {problem}; run the command again later (downloaded files are kept)", url=url, problem=problem
        )


def _read_whole(cached: Path) -> bytes | None:
    """Return the content of a cached zip; None if there is none, or if it is damaged."""
    try:
        data = cached.read_bytes()
    except OSError:
        return None
    return data if is_whole_zip(data) else None


def _read(response: "httpx2.Response", url: str) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_ZIP:
            raise TsugikiError(
                "{url} has more than {max_zip}; exclude this work", url=url, max_zip=format_size(MAX_ZIP)
            )
    return bytes(content)
