"""OpenAI's interface for files and fine-tuning, by its own client, whose types parse every answer strictly."""

import json
from typing import Any

import httpx2
import pytest

pytest.importorskip("starlette")
pytest.importorskip("openai")
import openai

from tests.serve.asking import connect
from tests.serve.workspace import Place

TURNS = [{"role": "user", "content": "What is grafted?"}, {"role": "assistant", "content": "A twig."}]
ROWS = "".join(json.dumps({"messages": TURNS, "number": number}) + "\n" for number in range(4)).encode()


@pytest.fixture
def client(place: Place, no_uploads: None) -> Any:
    return connect(place.running)


def strictly(answer: Any) -> Any:
    """The answer, each object of which has the types that OpenAI's specification gives it."""
    for one in getattr(answer, "data", [answer]):
        type(one).model_validate(one.to_dict(), strict=True)
    return answer


def test_files_are_sent_listed_read_and_deleted(client: Any, place: Place):
    file = strictly(client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune"))
    assert (file.filename, file.bytes, file.purpose, file.status) == ("rows.jsonl", len(ROWS), "fine-tune", "processed")
    unnamed = strictly(client.files.create(file=ROWS + ROWS, purpose="fine-tune"))
    assert unnamed.filename == "upload.jsonl"
    assert strictly(client.files.create(file=("again.jsonl", ROWS), purpose="fine-tune")) == file
    assert strictly(client.files.retrieve(file.id)) == file
    assert [one.id for one in strictly(client.files.list())] == [unnamed.id, file.id]
    assert [one.id for one in client.files.list(limit=1)] == [unnamed.id, file.id], "page by page"
    assert client.files.list(purpose="batch").data == []
    assert client.files.content(file.id).content == ROWS
    assert strictly(client.files.delete(file.id)).deleted
    for lost in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            lost(file.id)
        assert (raised.value.param, raised.value.type) == ("file_id", "invalid_request_error")


def test_files_that_are_not_kept(client: Any, place: Place):
    for name, content, purpose, param in (
        ("a.jsonl", ROWS, "assistants", "purpose"),
        ("a.jsonl", b"", "fine-tune", "file"),
        ("a.py", ROWS, "fine-tune", "file"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            client.files.create(file=(name, content), purpose=purpose)
        assert raised.value.param == param
    for query in ("limit=0", "limit=x", "limit=99999999999999999999", "after=../a"):
        assert httpx2.get(f"{place.running.url}/v1/files?{query}").status_code == 400
    url, form = f"{place.running.url}/v1/files", {"Content-Type": "multipart/form-data; boundary=a"}
    for body in (
        b"",
        b"--a\r\n",
        b"--a\r\n\r\n--a--",
        b'--a\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--a--',
    ):
        assert httpx2.post(url, content=body, headers=form).status_code == 400, body
    assert httpx2.post(url, content=b"a", headers={"Content-Type": "multipart/form-data"}).status_code == 400
    assert place.sent() == []


def test_a_page_of_another_site_can_neither_send_nor_delete_files(client: Any, place: Place):
    kept = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    for headers in ({"Origin": "https://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        url, files = f"{place.running.url}/v1/files", {"file": ("b.jsonl", ROWS + ROWS)}
        assert httpx2.post(url, data={"purpose": "fine-tune"}, files=files, headers=headers).status_code == 403
        assert httpx2.delete(f"{url}/{kept.id}", headers=headers).status_code == 403
    assert place.sent() == ["rows.jsonl"]
