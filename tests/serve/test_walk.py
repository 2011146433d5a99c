"""The whole way in the browser, in both languages and two widths: from what people bring to a talk and to a file."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import yaml

pytest.importorskip("starlette")
import tsugiki.serve.page as page_module
from tests.serve.chromium import marks, open_page, violations
from tests.serve.workspace import Place
from tests.tiny import TEXT

pytestmark = marks
MESSAGES = Path(page_module.__file__).with_name("page") / "messages"
WAIT = 300_000  # ms
PARTS = ("train", "runs", "adapters", "talk")
ROWS = [(f"What is {number**7} of {number**5}?", f"{number**9}, or {number**11}.") for number in range(2, 40)]
"""Questions and answers that are no near-duplicates of each other."""


class Walk:
    """A page in one language and width, which is looked at after each step."""

    def __init__(self, browser: Any, place: Place, problems: list[str], folder: Path, lang: str, width: int) -> None:
        self.place, self.folder, self.lang, self.width = place, folder, lang, width
        self.page = open_page(browser, f"{place.running.url}/#train", problems, lang, width)
        self.page.set_default_timeout(WAIT)
        self.said = {part: json.loads((MESSAGES / f"{part}.{lang}.json").read_text()) for part in PARTS}
        address = f"{place.running.url}/page/api/train/options"
        settings = httpx2.get(address, headers={"Accept-Language": lang}).json()["settings"]
        self.labels = {one["name"]: one["label"] for one in settings}
        self.name, self.seen = f"{folder.name}-{lang}-{width}"[-60:].strip("-_"), 0

    def button(self, part: str, key: str, inside: str = "body") -> Any:
        return self.page.locator(inside).get_by_role("button", name=self.said[part][key], exact=True)

    def look(self, name: str) -> None:
        self.seen += 1
        self.page.screenshot(path=self.folder / f"{self.seen}-{name}.png", full_page=True)
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.width, name
        assert violations(self.page) == [], name

    def bring(self, name: str, content: str) -> None:
        self.button("train", "sent.use").wait_for()
        self.look("empty")
        file = {"name": name, "mimeType": "text/plain", "buffer": content.encode()}
        self.page.locator(".drop input").set_input_files(file)

    def is_called(self, kind: str) -> None:
        """Check what the page says of the data, and that it shows what is learned of them."""
        self.page.locator(f"[data-found={kind}][data-state=known]").wait_for()
        assert self.page.locator(".sentence").inner_text().startswith(self.said["train"][f"kind.{kind}"])
        assert self.page.locator("[data-result=preview] mark.target").first.inner_text()
        assert "--" not in self.page.locator("[data-found]").inner_text()
        self.look(kind)

    def start(self, epochs: int, **choices: str) -> None:
        label = self.page.get_by_label
        label(self.said["train"]["name"], exact=True).fill(self.name)
        self.page.locator(".length input").fill(str(epochs))
        label(self.labels["prompts"], exact=True).fill("branch")
        for setting, value in choices.items():
            named = self.page.get_by_text(self.labels[setting], exact=True)
            self.page.locator("label", has=named).locator("select").select_option(value)
        self.page.get_by_text(f"epochs: {epochs}").wait_for()
        self.button("train", "start").click()
        self.page.locator("[data-view=runs] .plot svg").first.wait_for()
        self.look("curve")

    def talk(self, mode: str) -> None:
        self.page.locator("[data-state=finished]").first.wait_for()
        self.look("finished")
        self.button("runs", "talk").click()
        prompt = self.page.locator("[data-view=talk] .composer textarea").first
        prompt.fill("on the")
        assert self.page.get_by_label(self.said["talk"][mode], exact=True).is_checked()
        turns = self.page.locator(".turn")
        turn = turns.nth(turns.count())  # the next one
        prompt.press("Control+Enter")
        turn.locator(".answer[data-state=done]").nth(1).wait_for()
        assert turn.locator(".answer h2").all_inner_texts() == ["base", f"runs/{self.name}"]
        self.look("talk")

    def settings(self) -> Any:
        """What the page has written for the run."""
        return yaml.safe_load((self.place.directory / "runs" / self.name / "settings.yaml").read_text())


@pytest.fixture
def walk(request: Any, browser: Any, place: Place, problems: list[str], tmp_path: Path) -> Walk:
    return Walk(browser, place, problems, tmp_path, *request.param)


def looks(*pairs: tuple[str, int]) -> Any:
    """The languages and widths of a walk: each language and each width once."""
    return pytest.mark.parametrize("walk", pairs, indirect=True, ids=[f"{lang}-{width}" for lang, width in pairs])


FIRST, SECOND = looks(("en", 1280), ("ja", 390)), looks(("en", 390), ("ja", 1280))


@FIRST
def test_from_a_text_to_a_talk_and_to_files(walk: Walk):
    page, button = walk.page, walk.button
    button("train", "sent.use").wait_for()
    page.get_by_label(walk.said["train"]["sent.paste"], exact=True).fill(TEXT * 2)
    button("train", "sent.use").click()
    walk.is_called("texts")
    page.locator("summary", has_text=walk.said["train"]["more"]).click()
    page.get_by_label(walk.labels["block_size"], exact=True).fill("32")
    page.get_by_text("block_size: 32").wait_for()
    button("train", "plan").click()
    page.locator("[data-result=plan] tbody tr").first.wait_for()
    walk.look("plan")
    walk.start(4, target_modules="all-linear")  # llama.cpp could not load factors of the head
    walk.talk("mode.continue")

    page.evaluate("name => (location.hash = `runs/${encodeURIComponent(name)}`)", f"runs/{walk.name}")
    page.locator("[data-state=finished]").first.wait_for()
    kept = f"kept-{walk.lang}-{walk.width}"
    button("runs", "keep").click()
    walk.look("keep")
    page.locator("dialog input").fill(kept)
    button("runs", "keep", "dialog").click()
    page.locator("[data-view=adapters] h1", has_text=kept).wait_for()
    page.locator(".facts").first.wait_for()
    walk.look("kept")
    files = {}
    for kind in ("zip", "gguf"):
        with page.expect_download() as download:
            button("adapters", f"save_{kind}").click()
        assert download.value.suggested_filename == f"{kept}.{kind}"
        files[kind] = Path(download.value.path()).read_bytes()
    assert files["gguf"][:4] == b"GGUF"
    with zipfile.ZipFile(io.BytesIO(files["zip"])) as archive:
        weights = walk.place.running.library / kept / "adapter_model.safetensors"
        assert archive.read(f"{kept}/adapter_model.safetensors") == weights.read_bytes()


@FIRST
def test_from_a_text_to_a_talk_with_the_keyboard_alone(walk: Walk):
    from playwright.sync_api import expect

    page, button, press = walk.page, walk.button, walk.page.keyboard.press

    def reach(wanted: Any) -> None:
        """Press Tab until something has the focus."""
        expect(wanted).to_be_enabled()
        for _key in range(100):
            if wanted.evaluate("one => one === document.activeElement"):
                return
            press("Tab")
        raise AssertionError(f"Tab does not reach {wanted}")

    reach(page.get_by_label(walk.said["train"]["sent.paste"], exact=True))
    page.keyboard.insert_text(TEXT)
    reach(button("train", "sent.use"))
    press("Enter")
    page.locator("[data-found=texts][data-state=known]").wait_for()
    reach(page.get_by_label(walk.said["train"]["name"], exact=True))
    press("Control+a")
    page.keyboard.insert_text(walk.name)
    reach(page.locator(".length input"))
    page.keyboard.insert_text("1")
    page.get_by_text("epochs: 1").wait_for()
    reach(button("train", "start"))
    press("Enter")
    page.locator("[data-view=runs] [data-state=finished]").first.wait_for()
    reach(button("runs", "talk"))
    press("Enter")
    prompt = page.get_by_label(walk.said["talk"]["prompt"], exact=True)
    reach(prompt)
    page.keyboard.insert_text("on the")
    press("Control+Enter")
    page.locator(".answer[data-state=done]").nth(1).wait_for()
    edit = button("talk", "edit")
    page.evaluate("document.activeElement.blur()")
    reach(edit)
    press("Enter")
    expect(page.get_by_label(walk.said["talk"]["edit.label"])).to_be_focused()
    press("Escape")
    expect(edit).to_be_focused()
    walk.look("keyboard")


@SECOND
def test_conversations_become_a_chatbot_that_answers_in_chat(walk: Walk):
    def turns(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    walk.bring("talks.jsonl", "\n".join(json.dumps({"messages": turns(*row)}) for row in ROWS))
    walk.is_called("conversations")
    assert walk.page.get_by_label(walk.labels["preference"], exact=True).count() == 0
    walk.start(2)
    assert walk.settings()["chat_template"] == "auto"
    walk.talk("mode.chat")


@SECOND
def test_a_table_of_questions_whose_columns_are_clicked(walk: Walk):
    table = io.StringIO()
    csv.writer(table).writerows([("nr", "frage", "antwort"), *((number, *row) for number, row in enumerate(ROWS))])
    walk.bring("table.csv", table.getvalue())
    walk.page.locator("[data-found=table]").wait_for()
    walk.page.get_by_text(walk.said["train"]["columns.first"]).wait_for()
    walk.look("table")
    for column in ("frage", "antwort"):
        walk.page.get_by_role("button", name=column, exact=True).click()
    walk.is_called("questions")
    walk.start(2)
    walk.talk("mode.chat")


@FIRST
def test_pairs_become_a_preference_run(walk: Walk):
    rows = [{"prompt": question, "chosen": answer, "rejected": "I do not know."} for question, answer in ROWS]
    walk.bring("pairs.jsonl", "\n".join(map(json.dumps, rows)))
    walk.is_called("pairs")
    walk.page.get_by_label("beta", exact=True).fill("0.2")
    walk.start(2, preference="dpo_norm")
    shown = walk.settings()
    assert (shown["preference"], shown["preference_settings"]) == ("dpo_norm", {"beta": 0.2})
    walk.talk("mode.chat")


@SECOND
def test_votes_become_pairs_and_a_run(walk: Walk):
    page, place, said = walk.page, walk.place, walk.said["talk"]
    place.post("votes/remove", {})
    for question, answer in ROWS[:20]:
        answers = [{"model": "base", "text": answer}, {"model": "poet", "text": "I do not know."}]
        assert place.post("vote", {"prompt": question, "answers": answers, "best": 0}).status_code == 200
    page.goto(f"{place.running.url}/#talk/poet")
    page.get_by_label(said["blind"], exact=True).check()
    prompt = page.locator("[data-view=talk] .composer textarea").first
    prompt.fill("on the")
    prompt.press("Control+Enter")
    page.locator(".answer[data-state=done]").nth(1).wait_for()
    walk.look("blind")
    page.get_by_role("button", name="A", exact=True).click()
    page.get_by_text(said["pairs.added"].replace("{count}", "1")).wait_for()
    walk.look("voted")
    if walk.width < 600:  # the options are folded on a phone
        walk.button("talk", "options").click()
    page.get_by_label(said["blind"], exact=True).uncheck()
    page.get_by_role("link", name=said["pairs.learn"], exact=True).click()
    walk.is_called("pairs")
    walk.start(2)
    shown = walk.settings()
    assert (shown["held_out"], shown["validation"], shown["preference"]) == ("none", "none", "dpo")
    walk.talk("mode.continue")


@FIRST
def test_a_failed_run_is_started_again(walk: Walk):
    page, place = walk.page, walk.place
    text, name = place.directory / "texts" / "moved.txt", f"runs/{walk.name}"
    text.write_text(TEXT * 2, encoding="utf-8")
    asked = {"name": walk.name, "texts": ["moved.txt"], "block_size": 32, "batch_size": 2, "epochs": 1}
    assert place.begin(**asked).json()["run"]["place"] is None
    text.unlink()
    page.goto(f"{place.running.url}/#runs/{quote(name, safe='')}")
    page.get_by_role("alert").get_by_text("moved.txt").wait_for()
    walk.look("failed")
    text.write_text(TEXT * 2, encoding="utf-8")
    page.locator("button.primary", has_text=walk.said["runs"]["again"]).click()
    walk.is_called("texts")
    assert page.get_by_label(walk.labels["block_size"], exact=True).input_value() == "32"
    walk.start(2)
    walk.talk("mode.continue")
