"""Votes of the view Talk, kept as pairs in a file of the library: which of two answers to a prompt is better.

A row has the columns that preference tuning reads, and says which models wrote the answers. In a chat, `prompt` holds
the messages. A text that is continued is part of both answers, so that no chat template is put around it.
"""

from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tsugiki.errors import system_error, unreadable
from tsugiki.io.atomic import new_file
from tsugiki.io.formatting import format_size
from tsugiki.io.json import parse_rows, to_lines
from tsugiki.io.locks import locked
from tsugiki.language import _
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.protocol import Fields
from tsugiki.serve.routes import get_route, post_route
from tsugiki.serve.security import PAGE_API
from tsugiki.serve.uploads import Uploads

FOLDER = ".votes"
"""The folder in the library; no adapter's name can begin with a dot."""
FILE = "votes.jsonl"
OFFERED = 20  # pairs from which on the page offers to learn from them
FEW = 100  # pairs below which a share of them is too small to measure or to choose anything
ALL_TRAIN = {"held_out": "none", "validation": "none"}
"""Settings of a run on fewer than `FEW` pairs of votes."""
_LARGEST = 16_000_000  # bytes of the file
_SHOWN = 100  # pairs that are listed

_Text = Annotated[str, StringConstraints(max_length=200_000)]


class _Turn(BaseModel):
    role: str
    content: str


class _Pair(BaseModel):
    """A row of the file."""

    prompt: str | list[_Turn] | None = None
    chosen: str | list[_Turn]
    rejected: str | list[_Turn]
    base: str
    models: dict[Literal["chosen", "rejected"], str]


class VoteMessage(Fields):
    """A message that all models were told."""

    role: Literal["system", "user"]
    content: _Text


class VoteAnswer(Fields):
    """An answer, and the model that wrote it."""

    model: Annotated[str, StringConstraints(max_length=1000)]
    text: _Text


class VoteRequest(Fields):
    """A vote for one of the answers to a prompt, or to messages."""

    prompt: _Text | Annotated[list[VoteMessage], Field(min_length=1, max_length=2)]
    answers: Annotated[list[VoteAnswer], Field(min_length=2, max_length=6)]
    best: Annotated[int, Field(ge=0)]

    def pairs(self, base: str) -> list[dict[str, Any]]:
        """Return a row for each other answer; none with an answer that is empty or the same as the best one."""
        if self.best >= len(self.answers):
            message = _("best: there is no answer {number}", number=self.best)
            raise invalid(message, "best")
        best = self.answers[self.best]
        others = [one for one in self.answers if one.text.strip() not in ("", best.text.strip())]
        return [self._pair(best, other, base) for other in others if best.text.strip()]

    def _pair(self, best: VoteAnswer, other: VoteAnswer, base: str) -> dict[str, Any]:
        models = {"base": base, "models": {"chosen": best.model, "rejected": other.model}}
        if isinstance(self.prompt, str):
            return {"chosen": self.prompt + best.text, "rejected": self.prompt + other.text, **models}
        chosen, rejected = ([{"role": "assistant", "content": one.text}] for one in (best, other))
        prompt = [message.model_dump() for message in self.prompt]
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **models}


class Votes:
    """The pairs of a library."""

    def __init__(self, library: Path) -> None:
        self.folder = library.absolute() / FOLDER
        self.file = self.folder / FILE

    def content(self) -> bytes:
        """Return the file; empty if there is none."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise unreadable(self.file, error) from error

    def rows(self) -> tuple[list[dict[str, Any]], str]:
        """Return the pairs that can be read, and what is wrong with the first other line; empty if there is none."""
        rows, damaged = parse_rows(Path(FILE), self.content(), _Pair)
        return [row.model_dump(exclude_none=True) for row in rows], "".join(damaged[:1])

    def listing(self) -> dict[str, Any]:
        """Return how many pairs there are, from how many on they are offered or enough, and the last ones."""
        rows, damaged = self.rows()
        last = rows[: -_SHOWN - 1 : -1]
        return {"pairs": len(rows), "offered": OFFERED, "few": FEW, "last": last, "damaged": damaged}

    def add(self, vote: VoteRequest, base: str) -> dict[str, Any]:
        """Write the pairs of a vote; return how many there are now, are new, and could not be made."""
        rows = vote.pairs(base)
        added = to_lines(rows)
        with self._locked():
            content = self.content()
            if content and not content.endswith(b"\n"):  # an editor has written it
                content += b"\n"
            content += added
            if len(content) > _LARGEST:
                message = _(
                    "the votes take the {size} that they may; download and delete them first",
                    size=format_size(_LARGEST),
                )
                raise ApiError(413, message, code="no_room")
            Uploads(self.folder).check_room(len(content))
            if added:
                with new_file(self.file, replace=True) as temporary:
                    temporary.write_bytes(content)
        return {"pairs": len(self.rows()[0]), "added": len(rows), "left_out": len(vote.answers) - 1 - len(rows)}

    def remove(self) -> None:
        """Remove the file."""
        try:
            with self._locked():
                self.file.unlink(missing_ok=True)
        except OSError as error:
            raise system_error(_("cannot remove {path}: {reason}"), self.file, error) from error

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / ".lock", self.folder)


def holds_few_votes(path: Path) -> bool:
    """Return whether a file holds pairs of votes, and fewer than `FEW`."""
    if path.suffix != ".jsonl":
        return False
    with path.open("rb") as file:
        rows, _damaged = parse_rows(path, b"".join(islice(file, FEW)), _Pair)
    return 0 < len(rows) < FEW


class NoFields(Fields):
    """A request of the page that needs nothing else."""


def vote_routes(votes: Votes, base: str) -> list[Route]:
    """Return the routes by which the page keeps, shows, saves and removes pairs."""

    def remove(_asked: NoFields) -> dict[str, Any]:
        votes.remove()
        return votes.listing()

    def file(request: Request) -> Response:
        return Response(to_lines(votes.rows()[0]), media_type="application/x-ndjson")

    return [
        get_route("votes", votes.listing),
        post_route("vote", VoteRequest, lambda asked: votes.add(asked, base)),
        post_route("votes/remove", NoFields, remove),
        Route(f"{PAGE_API}votes/file", file),
    ]
