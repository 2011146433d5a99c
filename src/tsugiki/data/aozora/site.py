"""Aozora Bunko's site, or another in its layout, behind a cache."""

import io
import os
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.data.aozora.index import INDEX, Entry, Missing, read_index
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    import httpx2

SITE = "https://www.aozora.gr.jp"


class Unreachable(TsugikiError):
    """The site is out of reach altogether."""


class Site:
    """A site in the library's layout, asked politely.

    A file in the cache is never fetched again; the index is, after a week, if the site can be reached.
    """

    def __init__(self, url: str, cache: Path, pause: float = 0.5) -> None:
        """Ask `url` at most once in `pause` seconds, which is also the first wait before asking again."""
        self.url = url.rstrip("/")
        self.cache = cache / self.url.partition("://")[2].replace(":", "_")
        self.pause = pause
        self._next = 0.0
        self._client: httpx2.Client | None = None

    def entries(self) -> list[Entry]:
        """The works in the site's index."""
        path = f"index_pages/{INDEX}.zip"
        return read_index(self._cached(path, max_age=7 * 86_400), f"{self.url}/{path}")

    def locate(self, entry: Entry) -> str:
        """The URL."""
        return f"{self.url}/{entry.path}"

    def fetch(self, entry: Entry) -> bytes:
        """The zip, from the cache if it is there. Raises Missing, or Unreachable for any other trouble."""
        return self._cached(entry.path)

    def _cached(self, path: str, max_age: float | None = None) -> bytes:
        kept = self.cache / path
        if kept.is_file() and (max_age is None or time.time() - kept.stat().st_mtime < max_age):
            return kept.read_bytes()
        try:
            data = self._get(f"{self.url}/{path}")
        except Unreachable:
            if kept.is_file():
                return kept.read_bytes()
            raise
        if zipfile.is_zipfile(io.BytesIO(data)):  # what is broken is worth another try next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            _replace(kept, data)
        return data

    def _get(self, url: str, attempts: int = 4) -> bytes:
        import httpx2

        if self._client is None:
            self._client = httpx2.Client(timeout=30, follow_redirects=True, headers={"User-Agent": "tsugiki"})
        for attempt in range(attempts):
            time.sleep(max(0.0, self._next - time.monotonic()))
            try:
                response = self._client.get(url)
            except (httpx2.RequestError, httpx2.InvalidURL) as error:
                problem = f"cannot be reached ({error or type(error).__name__}); check the address and the network"
            else:
                if response.is_success:
                    self._next = time.monotonic() + self.pause
                    return response.content
                if response.status_code in (404, 410):
                    self._next = time.monotonic() + self.pause
                    raise Missing(f"{url}: the site answers {response.status_code}; try later")
                problem = f"the site answers {response.status_code}"
                if response.status_code < 500 and response.status_code != 429:
                    break
            self._next = time.monotonic() + self.pause * 2**attempt
        raise Unreachable(f"{url}: {problem}; run again later: what was fetched is kept")


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
