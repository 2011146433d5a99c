"""Files as people have them from other programs: Word, Excel, PDF, mails, and exports of chats."""

import datetime
import email.message
import json
import mailbox
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pypdf
import pytest
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from tests.errors import assert_refused
from tsugiki.data.read.files import read_records
from tsugiki.data.read.recognise import recognise
from tsugiki.data.records import Completion, Conversation, Document, Reading, Record


def read(path: Path, **columns: str) -> tuple[list[Record], str]:
    """The records of a file, and everything that is said of it."""
    reading = Reading()
    return list(read_records(path, columns, reading)), "\n".join(reading.notes())


def zipped(path: Path, name: str, content: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


# Office --------------------------------------------------------------------------------------------------


def word(path: Path, body: str) -> Path:
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return zipped(path, "word/document.xml", f'<w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>')


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def test_words_with_ruby_tables_and_changes_of_a_word_document(tmp_path: Path):
    ruby = f"<w:r><w:ruby><w:rt>{run('こころ')}</w:rt><w:rubyBase>{run('心')}</w:rubyBase></w:ruby></w:r>"
    changed = f"<w:ins>{run('新')}</w:ins><w:del><w:r><w:delText>旧</w:delText></w:r></w:del>"
    cell = "<w:tc><w:p>{}</w:p></w:tc>"
    table = f"<w:tbl><w:tr>{cell.format(run('一'))}{cell.format(run('二'))}</w:tr></w:tbl>"
    body = f"<w:p><w:pPr><w:tab/></w:pPr>{run('彼は')}{ruby}{run('を見た。')}</w:p><w:p>{changed}</w:p>{table}"
    [record], _said = read(word(tmp_path / "a.docx", body))
    assert record.text == "彼は心を見た。\n新\n一\t二"


def test_sheets_of_a_workbook(tmp_path: Path):
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in (["質問", "答え", None], [], ["いつ？", datetime.datetime(2026, 12, 3)], ["いくつ？", 3.0]):
        sheet.append(row)
    book.create_sheet("メモ").append(["何か"])
    book.save(tmp_path / "a.xlsx")
    records, said = read(tmp_path / "a.xlsx")
    assert [(one.prompt, one.completion) for one in records if isinstance(one, Completion)] == [
        ("いつ？", "2026-12-03"),
        ("いくつ？", "3"),
    ]
    assert records[0].source == f"{tmp_path}/a.xlsx (Sheet):3"
    assert "質問 → 答え" in said
    assert "a.xlsx (メモ): passed over" in said
    assert recognise(tmp_path / "a.xlsx").kind == "questions"


def pdf(path: Path, pages: list[list[str]]) -> Path:
    with PdfPages(path) as file:
        for number, lines in enumerate(pages, 1):
            figure = Figure()
            for place, line in enumerate(["The Head", *lines, f"- {number} -"] if lines else []):
                figure.text(0.1, 0.9 - place / 20, line, parse_math=False)
            file.savefig(figure)
    return path


def test_lines_of_a_pdf_are_joined_and_its_running_heads_left_out(tmp_path: Path):
    names = ["plum", "pear", "kiwi"]
    lines = "{} that goes on in the line be-\nlow, which is as wide as {} is,\nand ends {}."
    [record], said = read(pdf(tmp_path / "a.pdf", [lines.replace("{}", name).split("\n") for name in names]))
    text = "{} that goes on in the line below, which is as wide as {} is, and ends {}."
    assert record.text == "\n".join(text.replace("{}", name) for name in names)
    assert "left out on each page: - # -, The Head" in said


def test_a_pdf_that_has_no_text_to_read_says_why(tmp_path: Path):
    assert_refused(r"a\.pdf has only pictures", read, pdf(tmp_path / "a.pdf", [[]]))
    writer = pypdf.PdfWriter(clone_from=tmp_path / "a.pdf")
    writer.encrypt("secret")
    writer.write(tmp_path / "b.pdf")
    assert_refused(r"b\.pdf is protected by a password", read, tmp_path / "b.pdf")
    (tmp_path / "c.pdf").write_bytes((tmp_path / "a.pdf").read_bytes()[:200])
    assert_refused(r"c\.pdf cannot be read", read, tmp_path / "c.pdf")


@pytest.mark.parametrize(("name", "member"), [("a.docx", "word/document.xml"), ("a.xlsx", "xl/workbook.xml")])
def test_hostile_and_damaged_files_of_office(name: str, member: str, tmp_path: Path):
    assert_refused("unpacks to more than", read, zipped(tmp_path / name, member, "a" * 100_000_000))
    entity = f'<!DOCTYPE a [<!ENTITY b "{"c" * 99}">]><a>&b;</a>'
    assert_refused(f"{name} is no readable", read, zipped(tmp_path / name, member, entity))
    (tmp_path / name).write_bytes(b"\xd0\xcf\x11\xe0" + bytes(100))
    assert_refused(f"{name} is protected by a password", read, tmp_path / name)
    (tmp_path / name).write_bytes(b"PK")
    assert_refused(f"{name}: a damaged zip", read, tmp_path / name)


# Mails ---------------------------------------------------------------------------------------------------


def test_mails_without_quotations_and_signatures(tmp_path: Path):
    first = email.message.EmailMessage()
    first["From"], first["Subject"] = "山田 <a@example.org>", "予定"
    first.set_content("明日は\n\nOn Monday Bob <b@example.org>\nwrote:\n> いつ？\n\nそれでは。\n-- \n山田\n電話 1\n")
    first.add_attachment(b"x", maintype="image", subtype="png")
    second = b"Content-Type: text/plain; charset=iso-2022-jp\n\n" + "髙橋です\n".encode("cp932")
    third = b"Content-Type: text/html\n\n<p>hello</p><blockquote>old</blockquote>"
    flowed = b"Content-Type: text/plain; format=flowed\n\na line \ngoes on\n"
    box = mailbox.mbox(tmp_path / "a.mbox")
    for mail in (first, second, third, flowed, b"Content-Type: image/png\n\nx"):
        box.add(mail)
    box.flush()
    records, said = read(tmp_path / "a.mbox")
    texts = [one.text for one in records]
    assert texts[0] == "明日は\n\n\nそれでは。"
    assert (texts[2], texts[3]) == ("hello", "a line goes on")
    assert records[0].fields == {"title": "予定", "author": "山田"}
    assert "in 1 mails, some characters could not be read" in said
    assert "a.mbox:5: empty" in said
    assert recognise(tmp_path / "a.mbox").kind == "texts"
    (tmp_path / "a.eml").write_bytes(first.as_bytes())
    [alone], _said = read(tmp_path / "a.eml")
    assert isinstance(alone, Document)
    assert alone.text == texts[0]


# Chats ---------------------------------------------------------------------------------------------------


def turns(record: Record) -> list[tuple[str, str]]:
    assert isinstance(record, Conversation)
    return [(message.role, message.content) for message in record.messages]


def telegram(*messages: tuple[str, str, Any], kind: str = "personal_chat") -> dict[str, Any]:
    found = [
        {"type": "message", "date": f"2026-01-01T{time}:00", "from": who, "from_id": f"user{len(who)}", "text": text}
        for time, who, text in messages
    ]
    return {"name": "Alice", "type": kind, "messages": [{"type": "service", "date": ""}, *found]}


def test_a_chat_of_telegram(tmp_path: Path):
    link = ["see ", {"type": "link", "text": "x.org"}]
    chat = telegram(
        *(("09:59", "Me", "alone"), ("10:00", "Alice", link), ("10:01", "Alice", "ok?"), ("10:02", "Me", "yes")),
        *(("15:00", "Alice", "later"), ("15:01", "Me", "fine"), ("15:02", "Alice", "bye")),
    )
    path = tmp_path / "result.json"
    path.write_text(json.dumps(chat))
    records, said = read(path)
    assert list(map(turns, records)) == [
        [("user", "see x.org\nok?"), ("assistant", "yes")],
        [("user", "later"), ("assistant", "fine")],
    ]
    assert "the turns of Me are the answers; it has 2 conversations" in said
    assert recognise(path).kind == "conversations"
    path.write_text(json.dumps({"personal_information": {"user_id": 2}, "chats": {"list": [chat, telegram()]}}))
    assert read(path)[0] == records
    path.write_text(json.dumps(chat | {"messages": [*chat["messages"], {"type": "message", "text": "no date"}]}))
    assert_refused(r"result\.json is no export of a chat.*date", read, path)
    path.write_text(json.dumps(chat)[:300])
    assert_refused(r"result\.json is not JSON", read, path)
    path.write_text(json.dumps(telegram(("10:00", "Alice", "a"), ("10:01", "Bob", "b"), kind="private_group")))
    assert_refused("chat of Alice, Bob; say whose turns are the answers: --columns assistant=NAME", read, path)


LINE = """[LINE] 山田とのトーク履歴
保存日時：2026/01/05 12:00

2026/01/02(金)
午後10:15\t山田\tおはよう
午後10:16\t鈴木\t"二行の
返事"
午後10:17\t鈴木\t[スタンプ]
"""
ANDROID = """12/31/25, 10:14 - Messages are encrypted.
12/31/25, 10:15 - Alice: hello
12/31/25, 10:16 - Bob: two
lines
12/31/25, 10:17 - Bob: <Media omitted>
"""
IPHONE = """[2025/12/31 10:15:32] Alice: hello
[2025/12/31 10:16:00] Bob: two
lines
\u200e[2025/12/31 10:17:00] Bob: \u200eimage
"""


@pytest.mark.parametrize(
    ("text", "answer", "columns"),
    [
        (LINE, "二行の\n返事", {}),
        (ANDROID, "two\nlines", {"assistant": "Bob"}),
        (IPHONE, "two\nlines", {"assistant": "Bob"}),
    ],
)
def test_chats_of_line_and_whatsapp(text: str, answer: str, columns: dict[str, str], tmp_path: Path):
    path = tmp_path / "chat.txt"
    path.write_text(text, encoding="utf-8")
    [record], _said = read(path, **columns)
    assert turns(record)[1:] == [("assistant", answer)]
    if columns:
        assert_refused("chat of Alice, Bob", read, path)
        path = path.rename(tmp_path / "WhatsApp Chat with Alice.txt")
        assert turns(read(path)[0][0]) == turns(record)


@pytest.mark.parametrize("line", ["2026/1/2 10:15 Woke up: rain\n", "2026-01-02 10:15:32 INFO: started\n"])
def test_diaries_and_logs_are_no_chats(line: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text(line * 9)
    [record], said = read(tmp_path / "a.txt")
    assert (record.text, said) == (line * 9, "")


def test_in_a_group_the_others_have_names(tmp_path: Path):
    lines = [f"1/2/26, 10:{minute} - {who}: {who}!" for minute, who in ((10, "A"), (11, "B"), (12, "C"))]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    [record], _said = read(tmp_path / "a.txt", assistant="C")
    assert turns(record) == [("user", "A: A!\nB: B!"), ("assistant", "C!")]


def test_unicode_text_of_excel_is_a_table(tmp_path: Path):
    (tmp_path / "a.txt").write_text("問い\t答え\n一\t二\n", encoding="utf-16")
    [record], said = read(tmp_path / "a.txt")
    assert isinstance(record, Completion)
    assert "問い → 答え" in said
