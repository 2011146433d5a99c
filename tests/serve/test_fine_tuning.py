"""OpenAI's interface for files and fine-tuning, by its own client, whose types parse every answer strictly."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("starlette")
pytest.importorskip("openai")
import openai

from tests.serve.asking import connect
from tests.serve.workspace import Place, serve_in, write_run
from tsugiki.io.json import to_lines
from tsugiki.serve import job_id

WORDS = ("larch", "maple", "cedar", "apple", "plum", "birch", "ash", "oak", "elm", "yew")


def rows(words: Iterable[str]) -> bytes:
    """A row of OpenAI's format for each word."""
    turns = ([("user", f"What is {word * 3}?"), ("assistant", f"{word * 4} is a tree.")] for word in words)
    found = ([{"role": role, "content": text} for role, text in one] for one in turns)
    return to_lines([{"messages": one} for one in found])


ROWS = rows(WORDS[:6])


@pytest.fixture
def client(place: Place, no_uploads: None) -> Any:
    return connect(place.running)


def strictly(answer: Any) -> Any:
    """The answer, each object of which has the types that OpenAI's specification gives it."""
    found = getattr(answer, "data", [answer])
    assert found
    for one in found:
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
    assert [one.id for one in client.files.list(order="asc")] == [file.id, unnamed.id]
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
    assert httpx2.get(f"{place.running.url}/v1/none").text.count(" /v1/files,") == 1, "each address is named once"


def test_a_page_of_another_site_can_neither_send_nor_delete_files(client: Any, place: Place):
    kept = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    for headers in ({"Origin": "https://example.org"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        url, files = f"{place.running.url}/v1/files", {"file": ("b.jsonl", ROWS + ROWS)}
        assert httpx2.post(url, data={"purpose": "fine-tune"}, files=files, headers=headers).status_code == 403
        assert httpx2.delete(f"{url}/{kept.id}", headers=headers).status_code == 403
    assert place.sent() == ["rows.jsonl"]


def test_pairs_of_openai_are_learned_by_dpo(client: Any, place: Place):
    said = [{"role": "assistant", "content": text} for text in ("a tree.", "a stone.")]
    pairs = [
        {
            "input": {"messages": [{"role": "user", "content": f"What is {word * 3}?"}], "parallel_tool_calls": True},
            "preferred_output": said[:1],
            "non_preferred_output": said[1:],
        }
        for word in WORDS
    ]
    file = client.files.create(file=("pairs.jsonl", to_lines(pairs)), purpose="fine-tune")
    method, few = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, {"settings": {"max_steps": 2}}
    create = client.fine_tuning.jobs.create
    job = ended(client, create(model="base", training_file=file.id, method=method, extra_body=few))
    chosen = job.hyperparameters
    assert (chosen.batch_size > 0, chosen.n_epochs > 0, chosen.learning_rate_multiplier) == (True, True, 1)
    assert (job.status, job.error, job.method.dpo.hyperparameters.beta) == ("succeeded", None, 0.2)
    steps = [one.data for one in client.fine_tuning.jobs.list_events(job.id) if one.type == "metrics"]
    assert any("train_accuracy" in one for one in steps)
    wrong = client.files.create(
        file=("wrong.jsonl", to_lines([*pairs, {**pairs[0], "input": "a"}])), purpose="fine-tune"
    )
    job = ended(client, create(model="base", training_file=wrong.id, method=method))
    assert (job.status, job.error.param) == ("failed", "training_file")
    assert "wrong.jsonl:11" in job.error.message


def test_a_row_that_cannot_be_learned_is_named_by_its_line(client: Any, place: Place):
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://localhost/a.png"}}]}
    said = [picture, {"role": "assistant", "content": "a tree."}]
    file = client.files.create(file=("pictures.jsonl", ROWS + to_lines([{"messages": said}])), purpose="fine-tune")
    job = ended(client, client.fine_tuning.jobs.create(model="base", training_file=file.id))
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert "pictures.jsonl:7: turn 1 (user) has a part of type 'image_url'" in job.error.message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "gpt-none"}, "model"), ({"training_file": "file-none"}, "training_file"),
        ({"training_file": "../poet"}, "training_file"), ({"validation_file": "/etc/passwd"}, "validation_file"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": 1e9}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": "many"}}, "hyperparameters.batch_size"),
        ({"method": {"type": "magic"}}, "method.type"), ({"suffix": "x" * 65}, "suffix"),
        ({"metadata": {"a": "b" * 600}}, "metadata.a"), ({"settings": {"out": "x"}}, "out"),
    ],
)  # fmt: skip
def test_jobs_that_are_refused(client: Any, place: Place, changes: dict[str, Any], param: str):
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    url, body = f"{place.running.url}/v1/fine_tuning/jobs", {"model": "base", "training_file": file.id, **changes}
    answer = httpx2.post(url, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404 if param == "model" else 400, param)
    assert httpx2.post(url, json=body, headers={"Origin": "https://example.org"}).status_code == 403
    for what in ("cancel", "pause", "resume"):  # without a body, which a browser sends unasked
        assert httpx2.post(f"{url}/ftjob-none/{what}", headers={"Origin": "null"}).status_code == 403
    for given in ("ftjob-none", "..", "%2e%2e%2fpoet"):
        assert httpx2.get(f"{url}/{given}").status_code == 404


def ended(client: Any, job: Any) -> Any:
    """The job when it has ended."""
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(0.2)
        job = strictly(client.fine_tuning.jobs.retrieve(job.id))
    return job


def test_a_job_is_created_polled_read_and_talked_to(client: Any, place: Place):
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    other = client.files.create(file=("others.jsonl", rows(WORDS[6:])), purpose="fine-tune")
    more = {"suffix": "my model", "seed": 3, "metadata": {"of": "a test"}, "validation_file": other.id}
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 3}}}
    jobs = client.fine_tuning.jobs
    first = strictly(jobs.create(model="base", training_file=file.id, method=method, **more))
    second = strictly(jobs.create(model="base", training_file=file.id, hyperparameters={"n_epochs": 1}))
    assert [one.id for one in strictly(jobs.list(limit=1))][:2] == [second.id, first.id]
    assert second.status == "queued"
    assert [one.id for one in jobs.list(metadata={"of": "a test"})] == [first.id]
    with pytest.raises(openai.BadRequestError):
        client.files.delete(file.id)  # another file of its name would be learned
    acts = jobs.pause, jobs.resume, jobs.pause, jobs.cancel
    assert [strictly(act(second.id)).status for act in acts] == ["queued", "queued", "queued", "cancelled"]
    job = ended(client, first)
    assert client.files.delete(other.id).deleted, "as soon as the job has ended, though its process may not have"
    assert (job.status, job.error, job.seed, job.metadata) == ("succeeded", None, 3, {"of": "a test"})
    assert (job.training_file, job.validation_file) == (file.id, other.id)
    assert (job.method.type, job.method.dpo) == ("supervised", None)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (2, 3)
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at
    said = list(strictly(jobs.list_events(job.id, limit=2)))
    assert said[0].message == "The job has successfully completed"
    assert said[-1].message == f"Created fine-tuning job: {job.id}"
    steps = [one.data for one in said if one.type == "metrics"]
    assert [(one["step"], "train_loss" in one, "full_valid_loss" in one) for one in steps] == [
        (2, True, True), (1, True, False), (0, False, True)
    ]  # fmt: skip
    (results,) = job.result_files
    assert strictly(client.files.retrieve(results)).purpose == "fine-tune-results"
    lines = client.files.content(results).text.splitlines()
    assert lines[0] == "step,train_loss,train_accuracy,valid_loss,full_valid_loss,valid_reward"
    assert [line.partition(",")[0] for line in lines[1:]] == ["0", "1", "2"]
    saved = strictly(jobs.checkpoints.list(job.id)).data
    assert saved[0].step_number == 2
    for model in (job.fine_tuned_model, saved[0].fine_tuned_model_checkpoint):
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}], max_tokens=2)
        assert answer.choices[0].message.role == "assistant"
    for late in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError):
            late(job.id)
    assert strictly(client.models.delete(job.fine_tuned_model)).deleted
    for lost in (client.models.delete, client.models.retrieve):
        with pytest.raises(openai.NotFoundError):
            lost(job.fine_tuned_model)


BEGINNINGS = "昨夜、 山の上で 海の近くに 雨の日に 私は 古い家で 冬の夜、 母は庭で 駅の前に 春に 窓の外に 秋の風が"
ENDS = {"type": "string_check", "name": "ends", "operation": "like", "input": "{{sample.output_text}}"}
ENDS |= {"reference": "{{ item.wanted.end }}"}


def by_rule(grader: Any, **numbers: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": numbers}}


@pytest.mark.parametrize("base", ["", pytest.param("embedded", marks=pytest.mark.slow)])
def test_a_grader_is_learned_by_reinforcement(own_files: tuple[str, Path], tmp_path: Path, base: str):
    words, end = BEGINNINGS.split(), "ました。" if base else "."
    texts = [first + then for first in words[: 3 if base else 1] for then in words]
    asked = [{"messages": [{"role": "user", "content": text}], "wanted": {"end": end}} for text in texts]
    with serve_in(tmp_path / "work", (base or own_files[0], tmp_path / "library")) as place:
        client = connect(place.running)
        jobs, file = client.fine_tuning.jobs, client.files.create(file=to_lines(asked), purpose="fine-tune")
        method = by_rule(ENDS, n_epochs=1, eval_samples="auto", reasoning_effort="low")
        job = strictly(jobs.create(model="base", training_file=file.id, method=method))
        assert job.method.reinforcement.grader.to_dict() == ENDS
        job = ended(client, job)
        rewards = {one.data["step"]: one.data["valid_reward"] for one in jobs.list_events(job.id) if one.data}
        assert [*rewards] == [1, 0]
        write_run(place.directory, "lost", status="finished", kept_round=0)
        assert strictly(jobs.retrieve(job_id("lost"))).status == "failed"
        if job.status == "failed" and not base:  # the tiny one may have learned nothing
            assert "no round has a higher validation reward" in job.error.message
            return
        assert (job.status, job.error) == ("succeeded", None)
        table = client.files.content(job.result_files[0]).text.splitlines()
        assert [line.split(",")[::5] for line in table[1:]] == [[str(step), str(rewards[step])] for step in (0, 1)]
        turns = [{"role": "user", "content": "夏の終わりに"}]
        answer = client.chat.completions.create(model=job.fine_tuned_model, messages=turns, max_tokens=40)
        assert answer.choices[0].message.content
        assert not base or rewards[1] > rewards[0] + 0.2


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        (None, "grader"),
        ({"type": "python", "name": "a", "source": "x"}, "python is none of.*no code of a grader is run"),
        ({"type": "score_model", "name": "a", "model": "gpt", "input": []}, "score_model.*no other model is asked"),
        ({"type": "multi", "graders": {"a": {"type": "label_model"}}, "calculate_output": "a"}, "label_model"),
        ({**ENDS, "type": "text_similarity", "evaluation_metric": "cosine"}, "'fuzzy_match', .*cosine"),
        ({**ENDS, "operation": "is"}, "'eq', 'ne', 'like' or 'ilike'"),
    ],
)
def test_graders_that_are_refused(client: Any, place: Place, grader: Any, said: str):
    file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match=said) as raised:
        client.fine_tuning.jobs.create(model="base", training_file=file.id, method=by_rule(grader))
    assert raised.value.param == "method.reinforcement.grader"
