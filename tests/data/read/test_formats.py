"""Files as people have them: zips, works of Aozora Bunko, EPUB, JSON arrays, patterns, other columns."""

import io
import json
import stat
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused, refused
from tsugiki.data import (
    Completion,
    Document,
    Reading,
    content_key,
    has_annotations,
    html_text,
    is_work,
    parse_columns,
    read_records,
)
from tsugiki.data.read import tables

RULE = "-------------------------------------------------------\n"
BODY = (
    "　駅《えき》の｜停車場《ステーション》に灯［＃「灯」に傍点］がついた。\n"
    "［＃５字下げ］下がった\n※［＃歌記号、1-3-28］と※［＃「口＋世」、12-3］\n"
)
LEGEND = f"{RULE}【テキスト中に現れる記号について】\n\n《》：ルビ\n（例）駅《えき》\n{RULE}"
FOOTER = "\n\n底本：「庭」枝書房\n　　　1950（昭和25）年\n入力：甲\n青空文庫作成ファイル：\nこれは入力例です。\n"
WORK = f"駅\n庭野枝\n\n{LEGEND}\n{BODY}{FOOTER}"
CLEAN = "　駅の停車場に灯がついた。\n下がった\n〽と〓"


def read(data: Any, **more: Any) -> tuple[list[Any], Reading]:
    reading = Reading()
    return list(read_records(data, reading=reading, **more)), reading


# Aozora Bunko --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "end"),
    [("cp932", "\r\n"), ("utf-8-sig", "\n"), ("euc_jp", "\n"), ("utf-16-le", "\r\n"), ("utf-16-be", "\n")],
)
def test_a_work_of_aozora_bunko_is_read_without_notation(encoding: str, end: str, tmp_path: Path):
    path = tmp_path / "1_ruby_2.txt"
    path.write_bytes(WORK.replace("\n", end).encode(encoding))
    records, reading = read(path)
    assert records == [Document(CLEAN, str(path))]
    assert records[0].fields == {"title": "駅", "author": "庭野枝"}
    assert (reading.works, reading.unresolved) == ([str(path)], 1)
    assert len(reading.notes()) == 2 + (encoding != "utf-8-sig")
    archive = tmp_path / "1_ruby_2.zip"  # as the library distributes it
    archive.write_bytes(zip_bytes({"eki.txt": path.read_bytes(), "fig1.png": b"x"}))
    records, reading = read(archive)
    assert records == [Document(CLEAN, str(archive))]
    assert "1 file of another kind is passed over (.png)" in reading.notes()[-1]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (WORK, True),
        (f"駅\n庭野枝\n\n{BODY}{FOOTER}", True),
        ("駅\n庭野枝\n\n本文だけ。\n" + FOOTER, True),
        ("駅\n\n本文だけ。\n\n底本：「庭」枝書房\n", False),  # somebody's own note on a source
        (BODY, False),
        (f"記法の説明\n\n{BODY}\n底本：の行から後ろは除く。\n" + "別の話が続く。\n" * 2000, False),
        ("《引用》と《引用》\n" * 10, False),
        ("-" * 60 + "\nある表\n" + "-" * 60 + "\n底本の話をする。", False),
    ],
)
def test_only_works_are_taken_for_works(text: str, is_one: bool):
    assert is_work(text) is is_one


def test_annotations_without_header_and_footer_are_kept_and_told(tmp_path: Path):
    (tmp_path / "a.txt").write_text(BODY)
    records, reading = read(tmp_path / "a.txt")
    assert records[0].text == BODY
    assert reading.annotated == [str(tmp_path / "a.txt")]
    assert not has_annotations("普通の［注］と［＃しるし］")


def test_a_text_that_is_read_in_another_way_than_before_has_another_key(tmp_path: Path, monkeypatch: Any):
    path = tmp_path / "a.txt"
    path.write_text(WORK)
    key = content_key(path)
    monkeypatch.setattr("tsugiki.data.read.files.is_work", lambda text: False)
    assert content_key(path) != key


# Zips ----------------------------------------------------------------------------------------------------


def test_a_zip_of_several_texts_and_tables(tmp_path: Path):
    path = tmp_path / "all.zip"
    texts = {"b.txt": "二", "sub/a.md": "# 一", "c.jsonl": '{"text": "三"}\n', "package.json": '{"name": "x"}'}
    others = {"README.md": b"about", "x.doc": b"", ".b.txt": b"junk"}
    path.write_bytes(zip_bytes({name: text.encode() for name, text in texts.items()} | others))
    link = zipfile.ZipInfo("link.txt")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "b.txt")
    records, reading = read(path)
    assert [(one.text, one.source) for one in records] == [
        ("二", f"{path}/b.txt"),
        ("三", f"{path}/c.jsonl:1"),
        ("# 一", f"{path}/sub/a.md"),
    ]
    assert reading.passed_over == [f"{path}/link.txt (link)", f"{path}/x.doc"]
    assert reading.without_fields == [f"{path}/package.json"]


def zip_bytes(members: dict[str, bytes]) -> bytes:
    """The same bytes at every time, because they name tests, and all processes must collect the same ones."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def test_of_several_members_with_a_name_the_last_one_is_read_once(tmp_path: Path):
    content = zip_bytes({"a.txt": b"old", "c.txt": b"new", "b.txt": b"other"}).replace(b"c.txt", b"a.txt")
    (tmp_path / "a.zip").write_bytes(content)
    assert [record.text for record in read(tmp_path / "a.zip")[0]] == ["new", "other"]


# EPUB ----------------------------------------------------------------------------------------------------

PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>庭の本</dc:title><dc:creator>庭野枝</dc:creator>
</metadata><manifest>
<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="text/2%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/1.xhtml" media-type="application/xhtml+xml"/>
<item id="i" href="i.png" media-type="image/png"/></manifest>
<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/><itemref idref="i"/></spine></package>"""
CHAPTER = """<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title><style>p {{}}</style></head>
<body><h1>{0}</h1><p>　<ruby>駅<rp>(</rp><rt>えき</rt><rp>)</rp></ruby>に
灯が<em>つ</em>いた。<br/>二行目 &amp; A
B</p><p><br/></p><p>終わり</p></body></html>"""
EPUB = {
    "mimetype": b"application/epub+zip",
    "META-INF/container.xml": b'<container><rootfiles><rootfile full-path="OPS/p.opf"/></rootfiles></container>',
    "OPS/p.opf": PACKAGE.encode(),
    "OPS/nav.xhtml": "<html><body>目次</body></html>".encode(),
    "OPS/text/1.xhtml": CHAPTER.format("一").encode(),
    "OPS/text/2 b.xhtml": CHAPTER.format("二").encode("utf-16"),
}


def test_an_epub_is_one_document_in_the_order_of_its_chapters(tmp_path: Path):
    path = tmp_path / "a.epub"
    path.write_bytes(zip_bytes(EPUB))
    [record], _ = read(path)
    chapter = "{}\n　駅に灯がついた。\n二行目 & A B\n\n終わり"
    assert record == Document(f"{chapter.format('一')}\n\n{chapter.format('二')}", str(path))
    assert record.fields == {"title": "庭の本", "author": "庭野枝"}
    fonts = encryption("http://www.idpf.org/2008/embedding")  # they are obfuscated without a key
    path.write_bytes(zip_bytes({**EPUB, "META-INF/encryption.xml": fonts}))
    assert read(path)[0] == [record]


def encryption(method: str) -> bytes:
    return f'<encryption><EncryptedData><EncryptionMethod Algorithm="{method}"/></EncryptedData></encryption>'.encode()


def changed(path: str, content: bytes | None) -> bytes:
    """The EPUB with other content of one member, or without it."""
    return zip_bytes({name: found for name, found in {**EPUB, path: content}.items() if found is not None})


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("x.zip", zip_bytes({"a.txt": b"a" * 50_000_000}), "unpacks to more than"),
        ("x.zip", zip_bytes({"../a.txt": b"a"}), r"\.\./a\.txt.*leads out"),
        ("x.zip", b"PK\x03\x04 broken", "damaged zip"),
        ("x.zip", zip_bytes({"a.txt": "字".encode("utf-32-le") * 9 + b"\xff"}), "not text in UTF-8"),
        ("x.epub", changed("META-INF/encryption.xml", encryption("http://www.w3.org/2001/04/xmlenc")), "DRM"),
        ("x.epub", changed("META-INF/sinf.xml", b"<sinf/>"), "DRM"),
        ("x.epub", changed("META-INF/container.xml", b"<container/>"), "package.opf is missing"),
        ("x.epub", changed("OPS/p.opf", b"<package"), "OPS/p.opf: "),
        ("x.epub", changed("OPS/p.opf", b'<!DOCTYPE p [<!ENTITY a "b">]><package/>'), "defines entities"),
        ("x.epub", changed("OPS/text/1.xhtml", None), "OPS/text/1.xhtml is missing"),
        ("x.epub", changed("OPS/text/1.xhtml", b"\xff\xfe\xfd"), "UTF-8 or UTF-16"),
        ("x.epub", changed("OPS/p.opf", b"<package/>"), "is empty"),
    ],
)
def test_bad_zips_and_epubs_are_one_line_and_little_memory(name: str, content: bytes, fact: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with refused(fact):
        read(tmp_path / name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30_000_000
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_chapter_that_is_named_again_is_read_once(tmp_path: Path):
    spine = PACKAGE.replace('<itemref idref="a"/>', '<itemref idref="a"/>' * 20_000)
    (tmp_path / "a.epub").write_bytes(zip_bytes({**EPUB, "OPS/p.opf": spine.encode()}))
    [record], _ = read(tmp_path / "a.epub")
    assert (record.text.count("一"), record.text.count("駅に灯")) == (1, 2)


@pytest.mark.parametrize("mark", ["<a ", "<a b='", "<!--", "</p ", "<![CDATA[", "<?x "])
def test_a_tag_without_an_end_hides_the_rest_in_linear_time(mark: str):
    assert html_text("<p>a < b &amp; c</p>" + mark * 100_000) == "a < b & c"
    assert html_text("<p>a</p>b &lt; &am") == "a\nb < &am"
    assert html_text("<p>a</p>" + "<rt>" * 20_000 + "</rt>" * 20_000 + "<p>b</p>") == "a\nb"


# HTML ----------------------------------------------------------------------------------------------------


def test_cells_of_a_table_are_words_of_their_own():
    table = "<table><tr><th>品名</th><th>値段</th></tr><tr><td>茶</td> <td>100</td></tr></table>"
    assert html_text(f"<p>A</p>{table}B") == "A\n品名 値段\n茶 100\nB"


@pytest.mark.parametrize(
    "page",
    [
        CHAPTER.format("一").replace("<title>", "<script>if (a < b) {}</script><title>"),
        "<title>x</title><h1>一<p>　<ruby>駅<rp>(<rt>えき<rp>)</ruby>に灯が<em>つ</em>いた。<br>二行目 &amp; A B<p><br>"
        "<p>終わり",  # end tags that HTML may omit
    ],
)
def test_a_web_page_is_a_document_without_title_scripts_and_readings(page: str, tmp_path: Path):
    path = tmp_path / "a.html"
    path.write_text(page, encoding="cp932")
    assert read(path)[0] == [Document("一\n　駅に灯がついた。\n二行目 & A B\n\n終わり", str(path))]
    (tmp_path / "b.htm").write_text("<body><script>x</script></body>")
    records, reading = read(tmp_path)
    assert len(records) == 1
    assert reading.empty == [str(tmp_path / "b.htm")]


# Tables with other separators ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mark", "encoding"),
    [
        ("a.tsv", "\t", "utf-8-sig"),
        ("a.csv", ";", "utf-16"),
        ("a.csv", "|", "cp932"),
    ],
)
def test_the_separator_of_a_table_is_found(name: str, mark: str, encoding: str, tmp_path: Path):
    lines = ["", mark.join(["prompt", "completion"]), mark.join(["一", f'"二{mark}三"'])]
    (tmp_path / name).write_text("\n".join(lines), encoding=encoding)
    [record], _ = read(tmp_path / name)
    assert (record.prompt, record.completion) == ("一", f"二{mark}三")
    (tmp_path / "b.csv").write_text("text\na;b;c\n")
    assert [record.text for record in read(tmp_path / "b.csv")[0]] == ["a;b;c"]


@pytest.mark.parametrize(
    ("name", "way"),
    [("a.doc", "Word Document"), ("a.xls", "Excel Workbook"), ("a.odt", ".docx"), ("a.png", ".parquet")],
)
def test_files_of_other_kinds_say_what_to_do(name: str, way: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"x")
    assert_refused(f"{name}: .*{way}", read, tmp_path / name)


def test_a_web_address_is_no_path():
    for data in ("https://example.org/a.html", Path("https://example.org/a.html")):
        assert_refused(r"example\.org/a\.html is a web address", read, data)


# JSON ----------------------------------------------------------------------------------------------------


def test_a_json_array_and_objects_one_after_another(tmp_path: Path):
    rows = [{"text": "一", "author": "A"}, {"text": "二\n"}]
    for number, content in enumerate(
        (json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False), "\n".join(map(json.dumps, rows)))
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(content)
        assert read(path)[0] == [Document("一", f"{path}:1"), Document("二\n", f"{path}:2")]


def test_a_json_file_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "_MAX_JSON", 20)
    (tmp_path / "a.json").write_text('[{"text": "abcdefgh"}]')
    assert_refused(r"a\.json has more than .*\.jsonl", read, tmp_path / "a.json")


def test_rows_with_null_are_left_out_and_told(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    rows = [{"q": str(number), "a": None if number in (0, 4, 5) else "yes"} for number in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    records, reading = read(path)
    assert [record.prompt for record in records] == ["1", "2", "3", "6", "7", "8"]
    assert f"3 files or rows are empty, so nothing of them is used: {path}:1, {path}:5, {path}:6" in reading.notes()
    path.write_text("\n".join(json.dumps({"q": "x", "a": None}) for _ in range(3)))
    assert_refused(r"a\.jsonl:1 has null as completion", read, path)


# Columns, patterns, folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_columns_with_other_names(kind: str, tmp_path: Path):
    rows = [{"topic": "a", "reply": "bb", "title": "t"}]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("topic,reply,title\na,bb,t\n")
    elif kind == "parquet":
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    columns = parse_columns(["prompt=topic", "completion=reply"])
    [record], _ = read(path, columns=columns)
    assert isinstance(record, Completion)
    assert (record.prompt, record.completion, record.fields) == ("a", "bb", {"title": "t"})
    assert content_key(path, columns) != content_key(path)
    assert_refused("topic, reply, title.*--columns prompt=topic,completion=reply", read, path)
    assert_refused("--columns", read, path, columns={"prompt": "topik"})


@pytest.mark.parametrize(
    ("question", "answer"),
    [("Question", "Answer"), ("q", "a"), ("input", "output"), ("prompt", "response"), ("質問", "回答")],
)
def test_the_usual_names_of_a_question_and_its_answer_are_known(question: str, answer: str, tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text(f"id,{question},title,{answer}\n1,wann,x,um acht\n")
    [record], reading = read(path)
    assert record == Completion("wann", "um acht", f"{path}:2")
    assert (reading.pairs, reading.unused) == ([f"{question} → {answer}"], ["id"])
    assert f"{question} → {answer}" in "".join(reading.notes())


def test_a_known_schema_and_given_columns_come_before_usual_names(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "wann", "answer": "um acht", "text": "wann? um acht"}))
    [record], reading = read(path)
    assert (record.text, reading.pairs, reading.unused) == ("wann? um acht", [], ["question", "answer"])
    path.write_text(json.dumps({"question": "wann", "answer": "um acht"}))
    with refused("no prompt.*--columns prompt=question"):
        read(path, columns={"prompt": "qestion", "completion": "answer"})


def test_columns_that_are_written_in_another_way():
    for text in ("prompt", "prompt=", "=a", "a=b,,c=d", ""):
        with pytest.raises(ValueError, match="field=column"):
            parse_columns(text)
    with pytest.raises(ValueError, match="prompt twice"):
        parse_columns(["prompt=a", "completion=b,prompt=c"])


def test_several_texts_and_patterns_are_read_in_order_and_each_once(tmp_path: Path):
    for name in ("b", "a", "c", "sub/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(name)
    given = [str(tmp_path / "c.txt"), str(tmp_path / "*.txt"), str(tmp_path / "sub")]
    assert [one.text for one in read(given)[0]] == ["c", "a", "b", "sub/a"]
    assert [one.text for one in read(str(tmp_path / "**" / "*.txt"))[0]] == ["a", "b", "c", "sub/a"]
    (tmp_path / "[a].txt").write_text("x")
    assert [one.text for one in read(str(tmp_path / "[a].txt"))[0]] == ["x"], "a name with a bracket is no pattern"
    assert content_key(given) != content_key(given[:2])
    assert content_key(given[1]) == content_key([given[1]])
    several = content_key(f"{tmp_path}/**/a.txt")
    (tmp_path / "sub" / "a.txt").write_text("changed")
    assert content_key(f"{tmp_path}/**/a.txt") != several, "files of the same name in different folders"
    for wrong, fact in ((str(tmp_path / "*.md"), r"no file matches .*\.md"), ([given[0], "nowhere"], "nowhere")):
        assert_refused(fact, read, wrong)


def test_a_folder_is_read_in_order_of_names_and_what_it_holds_besides_is_told(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name, content in {
        "b.txt": "二",
        "a.txt": "一",
        "blank.txt": " \n",
        "README.md": "not read",
        ".hidden.txt": "no",
        "sub/c.jsonl": '{"text": "三"}\n\n{"text": "四", "title": "x"}\n',
        "sub/D.CSV": "text\nab\n",
        "meta.csv": "id,size\n1,2\n",
        "config.json": '{"a": 1}',
        "c.doc": "",
        "d.doc": "",
        "e.png": "",
    }.items():
        (tmp_path / name).write_text(content)
    records, reading = read(tmp_path)
    assert [record.text for record in records] == ["一", "二", "ab", "三", "四"]
    assert (records[-1].source, records[-1].fields) == (f"{tmp_path}/sub/c.jsonl:3", {"title": "x"})
    empty, others, without_texts = reading.notes()
    assert "blank.txt" in empty
    assert "(.doc 2, .png)" in others
    assert "config.json" in without_texts
    assert "meta.csv" in without_texts
