"""Read mails (.eml, .mbox) as texts, without what they quote, and without signatures and attachments."""

import email.policy
import mailbox
import re
from collections.abc import Iterator
from email import message_from_binary_file
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import Any

from tsugiki.data.read.character_encoding import decode_as
from tsugiki.data.read.html import html_text
from tsugiki.data.read.tables import NumberedRows
from tsugiki.data.records import Reading
from tsugiki.language import _

_PYTHON_NAMES = {"iso-2022-jp": "iso2022_jp_ext", "shift_jis": "cp932", "euc-jp": "euc_jp"}
_QUOTED_HTML = re.compile("<blockquote.*</blockquote>", re.DOTALL | re.IGNORECASE)
_END = re.compile(
    r"^(?:-- ?|_{20,}|-{3,} ?(?:original message|forwarded message|元のメッセージ|転送メッセージ) ?-{3,}"
    r"|(?:from|差出人): .*\n(?:sent|date|送信日時|日時): .*)$",
    re.MULTILINE | re.IGNORECASE,
)
"""The line after which only a signature or an earlier mail follows."""
_QUOTED = re.compile(r"(?:^(?:On .*\n)?(?!>).*[:：]\n+(?=>))?(?:^[>＞].*(?:\n|\Z))+", re.MULTILINE)
"""Lines that are quoted, with the one or two lines that say who wrote them."""


def mail_rows(path: Path, reading: Reading) -> NumberedRows:
    """Yield a row for each mail with a text: its number in the file; text, subject as `title`, sender as `author`."""
    replaced = 0
    for number, mail in enumerate(_mails(path), 1):
        text = _text(mail)
        if text:
            replaced += "\ufffd" in text
            names = {"title": _header(mail, "subject"), "author": parseaddr(_header(mail, "from"))[0]}
            yield number, {"text": text, **names}
        else:
            reading.empty.append(f"{path}:{number}")
    reading.remarks.append(_("{name}: mails, without what they quote, signatures and attachments", name=path))
    if replaced:
        message = _(
            "{name}: in {count:,} mails, some characters could not be read and became \ufffd", name=path, count=replaced
        )
        reading.remarks.append(message)


def _mails(path: Path) -> Iterator[Any]:
    def parse(file: Any) -> Any:
        return message_from_binary_file(file, policy=email.policy.default)

    if path.suffix.lower() == ".eml":
        with path.open("rb") as file:
            yield parse(file)
    else:
        yield from mailbox.mbox(path, parse, create=False).itervalues()


def _header(mail: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(mail[name] or "").split())
    except (ValueError, AttributeError, IndexError):  # the parser of headers fails at some damaged ones
        return ""


def _text(mail: EmailMessage) -> str:
    """Return what the sender has written; empty if there is no text."""
    try:
        body = mail.get_body(("plain", "html"))
        data = body.get_payload(decode=True) if body else b""
        charset = (body.get_content_charset() if body else None) or "utf-8"
    except (ValueError, AttributeError, IndexError, LookupError):
        return ""
    if body is None or not isinstance(data, bytes):
        return ""
    try:
        text = decode_as(data, _PYTHON_NAMES.get(charset, charset))
    except (UnicodeError, LookupError):
        text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    if body.get_content_type() == "text/html":
        return html_text(_QUOTED_HTML.sub("", text))
    if body.get_param("format") == "flowed":  # a space at the end of a line goes on in the next (RFC 3676)
        end = "" if body.get_param("delsp") == "yes" else " "
        text = re.sub(r"(?<!^--) \n(?!>)", end, text, flags=re.MULTILINE)
    return _QUOTED.sub("", _END.split(text)[0]).strip()
