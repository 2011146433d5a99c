"""Find several editions of the same work among works that are read one by one."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tsugiki.data.aozora.works import Work
from tsugiki.data.duplicates import near_duplicates, signature

_SHORTEST = 100  # characters; shorter texts, such as two haiku with a common line, are easily similar


class NearCopies:
    """Keeps the names and the signatures of works (504 bytes each), and groups those that are nearly the same."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._signatures: list[NDArray[np.uint32]] = []

    def collect(self, works: Iterable[Work]) -> Iterator[Work]:
        """Yield the works, and keep the signatures of all but very short ones."""
        for work in works:
            if len(work.text) >= _SHORTEST:
                self._names.append(f"{work.title} ({work.source})")
                self._signatures.append(signature(work.text))
            yield work

    def groups(self) -> list[list[str]]:
        """Return the names of the works in each group of near-duplicates."""
        if not self._names:
            return []
        return [[self._names[number] for number in group] for group in near_duplicates(np.stack(self._signatures))]
