"""The runs that wait for the end of another one: their names in order, in a file, so that a restart keeps them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

from tsugiki.errors import TsugikiError
from tsugiki.io.json import read_json, write_json
from tsugiki.io.locks import locked
from tsugiki.language import LANGUAGES, language

Waiting: TypeAlias = list[tuple[str, str]]
"""Names of runs, and the languages of who wants them to train."""


class RunQueue:
    """The queue in a file, and the lock that decides which of several threads and servers may start a run."""

    def __init__(self, file: Path) -> None:
        """Create it; the file need not exist."""
        self._file = file

    def names(self) -> list[str]:
        """Return the names of the runs in their order."""
        return [name for name, _language in self._read()]

    def put(self, name: str) -> None:
        """Add a run at the end."""
        with self.changing() as waiting:
            waiting.append((name, language()))

    def remove(self, name: str) -> bool:
        """Remove a run, and return whether it was in the queue."""
        if name not in self.names():  # few are; the lock would create the folder
            return False
        with self.changing() as waiting:
            before = len(waiting)  # another server may have started the run since
            waiting[:] = [one for one in waiting if one[0] != name]
            return len(waiting) < before

    def alone(self) -> AbstractContextManager[None]:
        """Let nobody else start, queue or remove a run while a `with` block runs."""
        return locked(self._file.with_suffix(".lock"), self._file)

    @contextmanager
    def changing(self) -> Iterator[Waiting]:
        """Within the block, nobody else changes the queue. At its end, the list is written."""
        with self.alone():
            waiting = self._read()
            before = list(waiting)
            yield waiting
            if waiting != before:
                write_json(self._file, dict(waiting))

    def _read(self) -> Waiting:
        try:
            found = read_json(self._file)
        except TsugikiError:  # there is none, or it is damaged
            return []
        return [(name, spoken) for name, spoken in found.items() if spoken in LANGUAGES]
