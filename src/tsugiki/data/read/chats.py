"""Read exported chats as conversations: Telegram's JSON, and the texts of WhatsApp and LINE.

The turns of one person are the answers: of the owner of the export where it says who that is, otherwise of the person
that `assistant` of the columns names. After three hours of silence a new conversation begins. In a chat of more than
two people, names stand before the turns of the others. Pictures, calls and notices are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from tsugiki.data.read.schemas import Columns
from tsugiki.data.read.tables import NumberedRows
from tsugiki.data.records import Reading
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.language import _

_SILENCE, _DAY = 180, 24 * 60  # minutes
_TIME = r"(?P<before>午前|午後)?(?P<hour>\d{1,2}):(?P<minute>\d{2})[\d:]*(?:\s?(?P<after>[AP]M))?"
_WHATSAPP = re.compile(
    rf"\u200e?(?P<bracket>\[)?(?P<day>\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}),?\s{_TIME}(?(bracket)\]|\s-)\s"
    r"(?:(?P<who>[^:]{1,80}):\s)?(?P<text>.*)",
    re.IGNORECASE,
)
"""The first line of a message, of iPhones (in brackets) or Android (with a dash); a notice has no writer."""
_LINE = re.compile(rf"(?P<day>){_TIME}(?:\t(?P<who>[^\t]+)\t| (?P<word>\S+) )(?P<text>.*)", re.IGNORECASE)
_LINE_TITLE = re.compile(r"\[LINE\] (?:Chat history (?:with|in) )?(?P<other>.+?)(?:との|の)?(?:トーク履歴)?\n")
_LINE_DAY = re.compile(r"\d{4}[./]\d{1,2}[./]\d{1,2}|[A-Z][a-z]{2}, \d{1,2}/\d{1,2}/\d{4}")
_NOT_TEXT = re.compile(r"\u200e.*|<[^<>]{1,60}>|\[[^][]{1,16}\]|☎.*", re.DOTALL)
"""The text that an export has in place of a picture, a sticker, a call or a notice."""
_QUOTED = re.compile(r'"(.*\n.*)"', re.DOTALL)
"""A message of several lines in LINE's export."""


class _Turn(NamedTuple):
    """A message of a chat."""

    number: int
    day: str
    minute: int
    who: str
    text: str


def is_chat(text: str) -> bool:
    """Return whether a text is an export of WhatsApp or LINE: most of its first lines are messages."""
    first = text[:4000].split("\n")[:10]
    return bool(_LINE_TITLE.match(text)) or 2 * sum(map(bool, map(_WHATSAPP.match, first))) > len(first) > 2


def text_rows(text: str, name: str, columns: Columns, reading: Reading) -> NumberedRows:
    """Yield the number of the first line of each conversation in an export of WhatsApp or LINE, and its messages."""
    title = _LINE_TITLE.match(text)
    turns = list(_text_turns(text, _LINE if title else _WHATSAPP))
    owner = _owner(turns, title["other"] if title else name, columns, name)
    yield from _conversations(turns, name, owner, reading)


def json_chats(rows: NumberedRows, name: str, columns: Columns, reading: Reading) -> NumberedRows:
    """Yield the rows of a `.json` file, and in place of a chat that Telegram has exported its conversations."""
    for number, row in rows:
        match row:
            case {"chats": {"list": [*_]}} | {
                "type": str(),
                "messages": [{"type": "message" | "service", "date": str()}, *_],
            }:
                try:
                    yield from list(_telegram_rows(row, name, columns, reading))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise TsugikiError(
                        "{name} is no export of a chat as Telegram writes it: {error}; export it again",
                        name=name,
                        error=error_text(error),
                    ) from error
            case _:
                yield number, row


def _telegram_rows(row: Mapping[str, Any], name: str, columns: Columns, reading: Reading) -> NumberedRows:
    """Yield the conversations of one chat, or of all chats in which the owner of the export has written."""
    if "chats" not in row:
        turns = list(_telegram_turns(row))
        other = str(row.get("name")) if row["type"] == "personal_chat" else ""
        yield from _conversations(turns, name, _owner(turns, other, columns, name), reading)
        return
    me = f"user{row['personal_information']['user_id']}"
    for chat in row["chats"]["list"]:
        for owner in {str(one["from"]) for one in chat["messages"] if one.get("from_id") == me}:
            yield from _conversations(list(_telegram_turns(chat)), name, owner, reading)


def _telegram_turns(chat: Mapping[str, Any]) -> Iterator[_Turn]:
    """Yield the messages of a chat, of which some parts, such as links, are objects."""
    for number, message in enumerate(chat["messages"], 1):
        parts = message.get("text") or ""
        text = "".join(part if isinstance(part, str) else str(part.get("text")) for part in parts)
        if message.get("type") == "message" and not message.get("forwarded_from"):
            when = datetime.fromisoformat(message["date"])
            yield _Turn(number, str(when.date()), when.hour * 60 + when.minute, str(message.get("from")), text)


def _text_turns(text: str, written: re.Pattern[str]) -> Iterator[_Turn]:
    """Yield the messages of an export in lines; other lines go on with the message before them, or tell the day."""
    day, found = "", list[_Turn]()
    for number, line in enumerate(text.split("\n"), 1):
        if begin := written.match(line):
            half = (begin["before"] or begin["after"] or "").upper()
            hour = int(begin["hour"]) % 12 + 12 * (half in ("PM", "午後")) if half else int(begin["hour"])
            parts = begin.groupdict()
            who = parts["who"] or parts.get("word") or ""
            found.append(_Turn(number, begin["day"] or day, hour * 60 + int(begin["minute"]), who, begin["text"]))
        elif written is _LINE and _LINE_DAY.match(line):
            day = line
        elif found:
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line}")
    for turn in found:
        quoted = _QUOTED.fullmatch(turn.text.strip()) if written is _LINE else None
        yield turn._replace(text=quoted[1] if quoted else turn.text)


def _owner(turns: Sequence[_Turn], other: str, columns: Columns, name: str) -> str:
    """Return the person whose turns are the answers; `other` names somebody who did not make the export."""
    people = list(dict.fromkeys(turn.who for turn in turns if turn.who))
    left = [who for who in people if (who == columns.get("assistant") if "assistant" in columns else who not in other)]
    if len(left) != 1 or len(people) < 2:
        raise TsugikiError(
            "{name} is a chat of {people}; say whose turns are the answers: {flag:columns assistant=NAME}",
            name=name,
            people=summarise_list(people) or _("nobody"),
        )
    return left[0]


def _conversations(turns: Sequence[_Turn], name: str, owner: str, reading: Reading) -> NumberedRows:
    """Yield conversations that begin with a turn of another person, and end with one of the owner."""
    kept = [turn for turn in turns if turn.who and turn.text.strip() and not _NOT_TEXT.fullmatch(turn.text.strip())]
    is_group = len({turn.who for turn in kept}) > 2
    ends = [place for place, (one, after) in enumerate(pairwise(kept), 1) if not _goes_on(one, after)]
    count = 0
    for begin, end in pairwise([0, *ends, len(kept)]):
        messages: list[dict[str, str]] = []
        for is_owner, several in groupby(kept[begin:end], lambda turn: turn.who == owner):
            texts = [turn.text if is_owner or not is_group else f"{turn.who}: {turn.text}" for turn in several]
            if messages or not is_owner:
                messages.append({"role": "assistant" if is_owner else "user", "content": "\n".join(texts).strip()})
        if len(messages) > 1:
            count += 1
            yield kept[begin].number, {"messages": messages[: len(messages) // 2 * 2]}
    message = _(
        "{name}: a chat, in which the turns of {who} are the answers; it has {count:,} conversations",
        name=name,
        who=owner,
        count=count,
    )
    reading.remarks.append(message)


def _goes_on(one: _Turn, after: _Turn) -> bool:
    """Return whether a turn belongs to the conversation of the one before it. Dates are only compared for equality."""
    later = after.minute - one.minute + (0 if after.day == one.day else _DAY)
    return 0 <= later < _SILENCE
