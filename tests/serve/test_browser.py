"""The page in Chromium: every view in both languages, two widths and two themes, and what Talk does."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.chromium import marks, open_page, violations
from tests.serve.conftest import Running, start

pytestmark = marks
UNNAMED = """[...document.querySelectorAll("button, input, select, textarea, a[href]")]
  .filter((one) => one.checkVisibility() && !one.textContent && !one.labels?.length && !one.ariaLabel)
  .map((one) => one.outerHTML)"""
VIEWS = ("talk", "adapters", "runs", "train")
MESSAGES = Path(__file__).parents[2] / "src/tsugiki/serve/page/messages"
PROMPTS = {
    "en": ["How do I graft an apple tree? Please give me the steps.", "And when?"],
    "ja": ["りんごの接ぎ木はどうすればよいですか。手順を教えてください。", "時期はいつですか？"],
}
ANSWER = """## 手順 — steps

1. **穂木**を切ります。Cut a scion:
   - 一年枝, one year old
   - as thick as a pencil
2. Bind it with `tape`.

| month | 作業 |
|---|---|
| March | 切る |

> See [more](https://example.org).

---
以上です。"""
PAIR: Any = {
    "models": {"chosen": "0.5 poet + 0.5 lawyer", "rejected": "base"},
    "prompt": [{"role": "user", "content": "How?"}],
    "chosen": [{"role": "assistant", "content": "So."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
TEXTS: Any = {"models": {"chosen": "poet", "rejected": "base"}, "chosen": "春の朝、花が", "rejected": "春の朝、が"}
KEPT: Any = {"pairs": 24, "offered": 20, "few": 100, "last": [TEXTS, PAIR] * 20}


@pytest.fixture(scope="module")
def server(served_files: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with all views."""
    from tsugiki.serve import Workspace

    folder = tmp_path_factory.mktemp("workspace")
    (folder / "a.txt").write_text("text " * 100, encoding="utf-8")
    with start(*served_files, workspace=Workspace(served_files[0], folder, folder, "https://localhost")) as served:
        yield served


@pytest.fixture
def opened(browser: Any, server: Running, problems: list[str]) -> Any:
    """Open the page with an adapter in Talk, or another part of it."""
    return lambda part="talk/lawyer", **look: open_page(browser, f"{server.url}/#{part}", problems, **look)


@pytest.fixture
def page(opened: Any) -> Any:
    """Talk with `lawyer`."""
    return opened()


def begin(page: Any, prompt: str, tokens: int) -> None:
    """Write a prompt in Talk."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("New tokens").fill(str(tokens))
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")


def ask(page: Any, prompt: str, tokens: int = 8) -> None:
    """Write a prompt in Talk, and wait for the answers."""
    turns = page.locator(".turn").count()
    begin(page, prompt, tokens)
    page.locator(".turn").nth(turns).get_by_role("button", name="Again", exact=True).wait_for()


def texts(page: Any) -> list[str]:
    found: list[str] = page.locator(".answer .text").all_inner_texts()
    return found


@pytest.mark.parametrize(
    ("lang", "width", "theme"),
    [("en", 1280, "light"), ("ja", 1280, "dark"), ("en", 390, "dark"), ("ja", 390, "light")],
)
def test_views(opened: Any, tmp_path: Path, lang: str, width: int, theme: str):
    page = opened("", lang=lang, width=width, color_scheme=theme)
    for number, view in enumerate(VIEWS):
        page.locator("nav a").nth(number).click()
        page.locator(f'.view[data-view="{view}"] h1').first.wait_for(state="attached")
        page.wait_for_load_state("networkidle")
        page.screenshot(path=tmp_path / f"{view}-{lang}-{width}-{theme}.png", full_page=True)
        assert page.locator("html").get_attribute("lang") == lang
        assert page.locator('nav a[aria-current="page"]').get_attribute("href") == f"#{view}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert page.locator(".failure").count() == 0
        assert page.evaluate(UNNAMED) == []
    print(f"screenshots: {tmp_path}")


def test_switches_are_kept(opened: Any):
    page = opened("")
    page.get_by_role("button", name="日本語").click()
    page.get_by_role("link", name="アダプター").wait_for()
    page.get_by_role("button", name="明暗の切り替え").click()
    page.reload()
    page.get_by_role("link", name="アダプター").wait_for()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"


def test_answers_side_by_side(opened: Any):
    page = opened("talk/poet")
    ask(page, "abc")
    said = texts(page)
    assert page.locator(".answer h2").all_inner_texts() == ["base", "poet"]
    assert said[0] != said[1]
    ask(page, "abc")  # the same seed gives the same answers
    assert texts(page)[2:] == said
    page.get_by_role("button", name="Again").last.click()  # another one does not
    page.get_by_text("Seed 4").wait_for()
    page.get_by_role("button", name="Again").nth(1).wait_for()
    assert texts(page)[2:] != said
    page.get_by_role("button", name="Again", exact=True).first.click()
    page.get_by_text("2 of 2").nth(1).wait_for()
    assert page.locator(".turn .prompt").all_inner_texts() == ["abc", "abc"]  # a text after it stays


def test_probabilities(opened: Any):
    page = opened(reduced_motion="reduce")  # it scrolls at once
    ask(page, "abc", 40)
    token = page.locator(".text span").filter(has_text=re.compile("^[A-Za-z]$")).first  # others can be several tokens
    token.hover()
    tip = page.locator(".tip:visible")
    chosen = tip.locator("tr[aria-current]")
    assert chosen.locator("td").first.inner_text() == token.inner_text()
    shares = [float(text.rstrip("%")) for text in tip.locator("td.number").all_inner_texts()]
    assert shares[:5] == sorted(shares[:5], reverse=True)
    assert 0 < sum(shares) <= 101
    page.mouse.move(0, 0)
    assert page.locator(".tip:visible").count() == 0
    page.locator(".text").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator(".text .marked").get_attribute("data-part") == "1"


def test_stop(page: Any):
    begin(page, "abc", 200)
    page.locator(".text span").first.wait_for()
    page.get_by_role("button", name="Stop").last.click()
    page.get_by_text("stopped").first.wait_for()
    assert page.locator(".text span").count() > 0


def test_a_blind_vote(page: Any):
    page.get_by_label("Hide names").check()
    ask(page, "abc")
    assert page.locator(".answer h2").all_inner_texts() == ["A", "B"]
    page.get_by_role("button", name="B", exact=True).click()
    names = page.locator(".answer h2").all_inner_texts()
    assert sorted(names) == ["base", "lawyer"]
    rows = {row.split()[0]: row.split()[1:4] for row in page.locator(".votes tr").all_inner_texts()[1:]}
    assert rows == {names[1]: ["1", "0", "0"], names[0]: ["0", "1", "0"]}
    page.reload()
    ask(page, "abc")
    page.get_by_role("button", name="No difference").click()
    assert page.locator(".votes tr").nth(1).inner_text().split()[3] == "1"


def test_a_vote_by_keyboard_goes_on_to_the_next_one_and_then_to_the_prompt(page: Any):
    from playwright.sync_api import expect

    page.get_by_label("Hide names").check()
    for prompt in ("one", "two"):
        ask(page, prompt)
    page.get_by_role("button", name="A", exact=True).first.focus()
    for names, focused in ((2, ".turn:nth-of-type(2) .foot button"), (0, ".composer textarea")):
        page.keyboard.press("Enter")
        page.get_by_text("Which answer is best?").nth(names // 2).wait_for(state="detached")
        expect(page.locator(focused).first).to_be_focused()
        assert page.get_by_role("button", name="No difference").count() == names // 2


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_where_the_reader_wants_less_motion(opened: Any, motion: str):
    page = opened(reduced_motion=motion)
    script = """() => [...document.querySelectorAll("*")].some((one) => ["", "::before", "::after"].some((part) => {
      const { animationName, transitionDuration, scrollBehavior } = getComputedStyle(one, part);
      return animationName !== "none" || transitionDuration !== "0s" || scrollBehavior === "smooth";
    }))"""
    page.evaluate("() => void (Element.prototype.scrollIntoView = (options) => (window.scrolled = options?.behavior))")
    begin(page, "abc", 200)
    page.locator(".answer[data-state=running]").first.wait_for()
    moves = [page.evaluate(script), page.evaluate("scrolled") == "smooth"]
    for view in VIEWS[1:]:
        page.evaluate("view => (location.hash = view)", view)
        page.locator(f'.view[data-view="{view}"] h1').first.wait_for()
        moves.append(page.evaluate(script))
    assert moves == [motion == "no-preference"] * 5


def test_a_mix(opened: Any):
    page = opened("")
    page.get_by_label("Model 2").click()
    page.get_by_role("button", name="Mix …").click()
    page.get_by_role("button", name="Use this mix").click()  # without factors it is none
    page.get_by_label("poet").fill("0.5")
    page.get_by_label("lawyer").fill("-1")
    page.get_by_role("button", name="Use this mix").click()
    ask(page, "abc")
    assert page.locator(".answer h2").all_inner_texts() == ["base", "-1 lawyer + 0.5 poet"]
    assert page.locator(".answer").nth(1).get_attribute("data-state") == "done"


def test_a_conversation(opened: Any):
    page = opened("talk/歌人")
    page.get_by_text("Chat", exact=True).click()
    with page.expect_request(lambda asked: "completions" in asked.url and '"base"' in asked.post_data) as sent:
        ask(page, "abc")
    assert sent.value.post_data_json["chat_template_of"] == "歌人"  # the base has no template
    assert [one.get_attribute("data-state") for one in page.locator(".answer").all()] == ["done", "done"]
    with page.expect_request(
        lambda asked: asked.url.endswith("chat/completions") and '"model":"歌人"' in asked.post_data
    ) as sent:
        ask(page, "def")
    assert "chat_template_of" not in sent.value.post_data_json
    messages = sent.value.post_data_json["messages"]
    assert [one["role"] for one in messages] in (["user", "assistant", "user"], ["user"])  # an empty answer is left out
    assert messages[-1]["content"] == "def"


def test_an_opened_adapter_decides_between_chat_and_continuation(opened: Any):
    for name, mode in (("歌人", "Chat"), ("poet", "Continue"), ("歌人", "Chat")):
        page = opened(f"talk/{name}")
        assert page.get_by_label(mode, exact=True).is_checked()
    page.get_by_text("Continue", exact=True).first.click()
    page.evaluate("location.hash = 'talk'")
    page.wait_for_load_state("networkidle")
    assert page.get_by_label("Continue", exact=True).is_checked()


def test_adapters_of_the_command_are_chosen_at_first(opened: Any, server: Running):
    page = opened("")
    assert page.get_by_label("Model 2").inner_text() == "broken"
    server.adapters.folders["歌人"] = server.library / "歌人"
    try:
        page.reload()
        page.get_by_label("Model 2").wait_for()
        assert page.get_by_label("Model 2").inner_text() == "歌人"
        assert page.get_by_label("Chat", exact=True).is_checked()
        page.get_by_label("Model 2").click()
        page.get_by_label("Search").fill("poet")
        page.locator("dialog").get_by_role("button", name="poet", exact=True).click()
        page.reload()
        page.get_by_label("Model 2").wait_for()
        assert page.get_by_label("Model 2").inner_text() == "poet"
    finally:
        del server.adapters.folders["歌人"]


def test_the_address_may_change_before_the_first_drawing(opened: Any):
    page = opened("")
    page.route("**/messages/shell.en.json", lambda route: (page.wait_for_timeout(500), route.continue_()))
    page.reload(wait_until="commit")
    page.evaluate("location.hash = 'runs'")
    page.locator('.view[data-view="runs"] h1').first.wait_for(state="attached")


def test_the_oldest_turns_are_left_out_of_the_context_and_the_page_says_so(opened: Any):
    page = opened("talk/歌人")
    page.get_by_text("Chat", exact=True).click()
    for _ in range(4):
        ask(page, "on the mountain " * 5, 40)
    assert page.locator(".answer[data-state=failed]").count() == 0
    assert "oldest turns left out" in page.locator(".answer .note").last.inner_text()


def test_a_turn_is_edited_and_any_is_asked_again_beside_what_was(opened: Any):
    page = opened("talk/歌人")
    page.get_by_text("Chat", exact=True).click()
    for prompt in ("one", "two"):
        ask(page, prompt)
    turns, first = page.locator(".turn"), page.locator(".turn").first
    before = texts(page)
    first.get_by_role("button", name="Edit").click()
    field = page.get_by_label("Changed prompt")
    assert field.input_value() == "one"
    field.fill("other")
    with page.expect_request(lambda asked: asked.url.endswith("chat/completions")) as sent:
        field.press("Enter")
    assert [one["content"] for one in sent.value.post_data_json["messages"]] == ["other"]
    first.get_by_role("button", name="Again", exact=True).wait_for()
    assert turns.locator(".prompt").all_inner_texts() == ["other"]  # what followed the other version is with it
    page.reload()
    first.get_by_role("button", name="Version before").click()
    page.get_by_text("two").wait_for()
    assert texts(page) == before
    first.get_by_role("button", name="Again", exact=True).click()  # not the last one
    first.get_by_text("3 of 3").wait_for()
    first.get_by_text("Seed 4").wait_for()
    first.get_by_role("button", name="Again", exact=True).wait_for()
    assert turns.locator(".prompt").all_inner_texts() == ["one"]


@pytest.mark.parametrize("name", ["歌人", "poet"])
def test_a_running_turn_survives_a_reload_and_goes_on(opened: Any, name: str):
    page = opened(f"talk/{name}")
    page.get_by_role("button", name="Remove base").click()
    page.get_by_label("Shade by probability").check()  # so that tokens are shown, also of what happens to be Markdown
    begin(page, "abc", 150)
    page.locator(".text span").nth(3).wait_for()
    page.reload()
    answer = page.locator(".answer")
    answer.get_by_role("button", name="Try again").wait_for()
    text = answer.locator(".text").inner_text()
    assert len(text) > 3
    assert answer.get_attribute("data-state") == "stopped"
    with page.expect_request(lambda asked: asked.url.endswith("completions")) as sent:
        answer.get_by_role("button", name="Go on").click()
    asked = sent.value.post_data_json
    begun = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"].removeprefix("abc")
    assert begun.strip() == text.strip()
    page.locator(".answer[data-state=done]").wait_for()
    assert answer.locator(".text").inner_text().strip().startswith(text.strip())


def test_votes_become_pairs_that_are_offered(page: Any, server: Running):
    page.evaluate("async () => (await import('/page/api.js')).postJson('/page/api/votes/remove', {})")
    page.get_by_label("Hide names").check()
    ask(page, "abc")
    ballot = page.locator(".turn .foot").last
    assert ballot.bounding_box()["y"] + ballot.bounding_box()["height"] <= page.locator(".composer").bounding_box()["y"]
    page.get_by_role("button", name="A", exact=True).click()
    page.get_by_text("Pairs kept from this vote: 1").wait_for()
    page.get_by_text("From 20 on").wait_for()
    assert page.get_by_role("link", name="Learn").count() == 0
    answers = [{"model": "base", "text": "x"}, {"model": "lawyer", "text": "y"}]
    script = """async (vote) => {
      const { postJson } = await import("/page/api.js");
      for (let one = 1; one < 20; one++) await postJson("/page/api/vote", vote);
    }"""
    page.evaluate(script, {"prompt": "abc", "answers": answers, "best": 0})
    page.reload()
    page.get_by_text("Below 100 pairs").wait_for()
    page.get_by_role("button", name="Look through").click()
    assert page.locator("dialog li").count() == 20
    page.get_by_role("button", name="Close").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the pairs").click()
    assert len(Path(download.value.path()).read_text(encoding="utf-8").splitlines()) == 20
    page.get_by_role("link", name="Learn").wait_for()
    page.get_by_role("button", name="Delete the pairs").click()
    page.locator("dialog").get_by_role("button", name="Delete the pairs").click()
    page.locator(".pairs").wait_for(state="detached")
    assert not (server.library / ".votes" / "votes.jsonl").exists()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_talk_in_every_state(opened: Any, tmp_path: Path, lang: str, width: int):
    """A conversation with Markdown, by answers that the test gives; `-s` names the folder of the screenshots."""
    said = json.loads((MESSAGES / f"talk.{lang}.json").read_text(encoding="utf-8"))
    page = opened("talk/歌人", lang=lang, width=width, reduced_motion="reduce")
    chunk = {"choices": [{"index": 0, "delta": {"content": ANSWER}, "finish_reason": "stop", "logprobs": None}]}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    page.route("**/page/api/votes", lambda route: route.fulfill(json=KEPT))
    seen: list[str] = []

    def button(key: str, **values: Any) -> Any:
        return page.get_by_role("button", name=said[key].format(**values), exact=True)

    def look(name: str) -> None:
        seen.append(name)
        page.screenshot(path=tmp_path / f"{len(seen)}-{name}-{lang}-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert violations(page) == [], name

    def say(prompt: str) -> None:
        turns = page.locator(".turn").count()
        page.get_by_label(said["prompt"], exact=True).fill(prompt)
        page.keyboard.press("Enter")
        page.locator(".turn").nth(turns).get_by_role("button", name=said["again"], exact=True).wait_for()

    button("model_number", number=2, name="歌人").wait_for()
    look("empty")
    button("model_number", number=2, name="歌人").click()
    page.get_by_label(said["search"]).fill("歌")
    look("search")
    page.keyboard.press("Enter")
    for prompt in PROMPTS[lang]:
        say(prompt)
    look("answers")
    if width < 600:
        assert page.locator(".composer").bounding_box()["height"] <= 850 / 4
        button("options").click()
        look("options")
    page.get_by_label(said["blind"]).check()
    say(PROMPTS[lang][0])
    foot, composer = (page.locator(one).last.bounding_box() for one in (".turn .foot", ".composer"))
    assert foot["y"] + foot["height"] <= composer["y"]
    look("ballot")
    button("no_difference").click()
    page.locator(".votes .learn").scroll_into_view_if_needed()
    look("votes")
    button("pairs.look").click()
    look("pairs")
    button("close").click()
    button("edit").first.click()
    page.get_by_label(said["edit.label"]).press("Enter")
    page.locator(".versions").wait_for()
    button("edit").first.click()
    look("edited")
    button("settings" if width > 600 else "options").click()
    look("settings")
    print(f"screenshots: {tmp_path}")


def test_history(opened: Any, tmp_path: Path):
    from playwright.sync_api import expect

    page = opened("talk/poet")
    prompt = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    ask(page, prompt)
    said = texts(page)
    assert page.locator(".turn img, .turn script").count() == 0
    assert page.locator(".turn .prompt").inner_text() == prompt
    page.reload()
    page.locator(".turn").wait_for()
    assert texts(page) == said
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="History").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Forget all").click()
    expect(page.locator("dialog li")).to_have_count(0)
    (tmp_path / "other.json").write_text('{"format": "tsugiki-conversations-1", "conversations": [{"id": 1}]}')
    for path, note in ((tmp_path / "other.json", "no file"), (file, "Imported: 1")):
        page.get_by_label("Import").set_input_files(path)
        page.get_by_text(note).wait_for()
    page.locator("dialog li").get_by_role("button", name=prompt[:20]).first.click()
    page.locator(".turn").wait_for()
    assert texts(page) == said


def test_an_answer_is_asked_again(page: Any, problems: list[str]):
    page.route("**/v1/completions", lambda route: route.abort())
    ask(page, "abc")
    assert page.locator(".answer[data-state=failed]").count() == 2
    page.unroute("**/v1/completions")
    page.get_by_role("button", name="Try again").first.click()
    page.locator(".answer[data-state=done]").wait_for()
    assert texts(page)[0]
    problems.clear()  # of the requests that the test has ended


def test_the_first_sight_on_a_phone_in_japanese(opened: Any):
    page = opened("talk/poet", lang="ja", width=390, has_touch=True, is_mobile=True)
    heading = page.locator(".welcome h2")
    lines = page.evaluate("(one) => getComputedStyle(one).wordBreak", heading.element_handle())
    assert (lines, heading.text_content().count("\u200b")) == ("keep-all", 2), "it breaks between words alone"
    assert page.locator(".welcome button").inner_text() == "春の朝、"
    page.get_by_label("プロンプト").fill("abc")
    page.locator(".composer button.primary").click()
    page.locator(".composer button", has_text="停止").wait_for()
    assert page.locator(".composer").bounding_box()["height"] < 90, "room for the answers"
    page.locator('.answer[data-state="done"]').first.wait_for()
    page.goto(page.url.partition("#")[0] + "#train")
    choosing = page.locator("label.files")
    assert choosing.locator("span").inner_text() == "ファイルを選ぶ"
    assert choosing.locator("input").bounding_box()["width"] < 5, "the browser's text has another language"
    page.goto(page.url.partition("#")[0] + "#runs")
    assert "tsugiki quickstart" in page.locator(".empty").inner_text()


def test_settings_do_not_cover_the_answers_of_a_phone(opened: Any):
    page = opened("talk/poet", width=390)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Prompt").fill("abc")
    page.get_by_role("button", name="Continue").click()
    page.locator(".turn").get_by_role("button", name="Again").wait_for()
    assert not page.get_by_label("Temperature").is_visible()
    assert page.locator(".composer").bounding_box()["height"] < 850 / 4
    assert page.locator("body > header").bounding_box()["height"] < 60
    page.get_by_role("button", name="Options").click()
    page.get_by_role("button", name="Settings").click()
    assert page.get_by_label("Temperature").is_visible()


MARKDOWN = [
    ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
    ("1. a\n\n   b\n2. c", "<ol start=1><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
    ("3) a", "<ol start=3><li>a</li></ol>"),
    (r"\*a\*", "<p>*a*</p>"),
    ("__a__ and ***b***", "<p><strong>a</strong> and <em><strong>b</strong></em></p>"),
    ("これは**「枝」**です", "<p>これは<strong>「枝」</strong>です</p>"),
    ("---", "<hr>"),
    ("~~~py\n<b>\n~~~", "<pre>&lt;b&gt;</pre>"),
    ("```\nopen", "<pre>open</pre>"),
    ("~~a~~ 5~10、3~4", "<p><del>a</del> 5~10、3~4</p>"),
    ("> # a\n> b", "<blockquote><p>a</p><p>b</p></blockquote>"),
    ("`a<b>` <i>x</i>", "<p><code>a&lt;b&gt;</code> &lt;i&gt;x&lt;/i&gt;</p>"),
    ("- [x] a", "<ul><li>☑ a</li></ul>"),
    ("*a* [b](javascript:alert(2)) ![c](data:x)", "<p><em>a</em> [b](javascript:alert(2)) ![c](data:x)</p>"),
    ("<img src=x onerror=alert(3)>\n\n*a*", "<p>&lt;img src=x onerror=alert(3)&gt;</p><p><em>a</em></p>"),
    ("春の朝", "<p>春の朝</p>"),
    ("a * b, 2 > 1 and x_y", "<p>a * b, 2 &gt; 1 and x_y</p>"),
]


def rendered(page: Any, text: str) -> tuple[str, bool]:
    """The HTML of a text in Markdown, and whether the page finds markup in the text."""
    script = """async (text) => {
      const { markdown, hasMarkup } = await import("/page/views/talk/markdown.js");
      const { render } = await import("/page/ui.js");
      const root = document.createElement("div");
      document.body.append(root);
      render(markdown(text), root);
      return [root.innerHTML, hasMarkup(text)];
    }"""
    shown, marked = page.evaluate(script, text)
    return shown, marked


def test_markdown_is_shown_and_never_acts(opened: Any):
    page = opened("")
    for text, wanted in MARKDOWN:
        plain = re.sub(r' (?:class|tabindex)="\w+"|"|\n', "", rendered(page, text)[0])
        assert plain == wanted.replace("\n", ""), text


def test_a_text_has_markup_if_it_is_more_than_paragraphs(opened: Any):
    page = opened("")
    for text, wanted in MARKDOWN:
        assert rendered(page, text)[1] == bool(set(re.findall(r"<(\w+)", wanted)) - {"p"}), text


def test_a_link_tells_its_site_nothing_about_the_page(opened: Any):
    shown, _marked = rendered(opened(""), "[a](https://example.org) | b")
    assert 'href="https://example.org"' in shown
    assert 'rel="noopener noreferrer nofollow"' in shown


def test_a_table_is_shown_also_below_a_line_with_its_separator(opened: Any):
    shown, _marked = rendered(opened(""), "a | b\n\n| a | |\n|---|---|\n| 1 | **2** |")
    assert "<td>1</td><td><strong>2</strong></td>" in shown


def test_the_key_is_asked(browser: Any, served_files: tuple[str, Path], problems: list[str]):
    with start(*served_files, api_key="secret") as running:
        page = open_page(browser, running.url, problems)
        for key in ("wrong", "secret"):
            page.get_by_label("Key").fill(key)
            page.get_by_role("button", name="Continue").click()
        page.get_by_label("Prompt").wait_for()
        page.reload()
        page.get_by_label("Prompt").wait_for()
        assert page.evaluate("JSON.stringify({...localStorage})").count("secret") == 0
        page.close()
    problems.clear()  # of requests before the key is given, and of Chromium about fields for a password


def test_functions_of_the_page(opened: Any):
    page = opened("")

    def call(module: str, function: str, *arguments: Any) -> Any:
        script = "async ([module, name, values]) => (await import(module))[name](...values)"
        return page.evaluate(script, [f"/page/views/talk/{module}.js", function, list(arguments)])

    def pieces(text: str, *tokens: str) -> list[tuple[str, int]]:
        split = call("generate", "split", text, [{"text": token} for token in tokens])
        return [(part["text"], len(part["tokens"])) for part in split]

    assert pieces("ab", "a", "b") == [("a", 1), ("b", 1)]
    assert pieces("a", "a", "<end>") == [("a", 1)]
    assert pieces("鬱", "<0xE9>", "<0xAC>", "<0xB1>") == [("鬱", 3)]
    assert pieces(" a", "a") == [(" a", 1)]
    # Wilson's bounds are the shares from which the result is 1.96 errors off
    for won, count in ((7, 12), (0, 1), (3, 3)):
        for bound in call("votes", "interval", won, count):
            error = math.sqrt(bound * (1 - bound) / count)
            assert abs(won / count - bound) == pytest.approx(1.96 * error, abs=1e-9)
    assert call("models", "labelOf", 'mix:{"a":0.5,"b":2}') == "0.5 a + 2 b"
