"""The page in Chromium: every view in both languages, two widths and two themes, and what Talk does."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.chromium import marks, open_page
from tests.serve.conftest import Running, start

pytestmark = marks
UNNAMED = """[...document.querySelectorAll("button, input, select, textarea, a[href]")]
  .filter((one) => one.checkVisibility() && !one.textContent && !one.labels?.length && !one.ariaLabel)
  .map((one) => one.outerHTML)"""
VIEWS = ("talk", "adapters", "runs", "train")


@pytest.fixture(scope="module")
def server(served_files: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with all views."""
    from tsugiki.serve import Workspace

    folder = tmp_path_factory.mktemp("workspace")
    (folder / "a.txt").write_text("text " * 100, encoding="utf-8")
    yield from start(*served_files, workspace=Workspace(served_files[0], folder, folder, "https://localhost"))


def ask(page: Any, prompt: str, tokens: int = 8) -> None:
    """Write a prompt in Talk, and wait for the answers."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("New tokens").fill(str(tokens))
    page.get_by_label("Seed").fill("3")
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")
    page.locator(".turn").last.get_by_role("button", name="Again", exact=True).wait_for()


@pytest.mark.parametrize(
    ("lang", "width", "theme"),
    [("en", 1280, "light"), ("ja", 1280, "dark"), ("en", 390, "dark"), ("ja", 390, "light")],
)
def test_views(browser: Any, server: Running, problems: list[str], tmp_path: Path, lang: str, width: int, theme: str):
    page = open_page(browser, server.url, problems, lang, width, color_scheme=theme)
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
    assert problems == []


def test_switches_are_kept(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)
    page.get_by_role("button", name="日本語").click()
    page.get_by_role("link", name="アダプター").wait_for()
    page.get_by_role("button", name="明暗の切り替え").click()
    page.reload()
    page.get_by_role("link", name="アダプター").wait_for()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"
    assert problems == []


def test_answers_side_by_side(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/poet", problems)
    ask(page, "abc")
    names, texts = page.locator(".answer h2").all_inner_texts(), page.locator(".answer .text").all_inner_texts()
    assert names == ["base", "poet"]
    assert texts[0] != texts[1]
    ask(page, "abc")  # the same seed gives the same answers
    assert page.locator(".answer .text").all_inner_texts()[2:] == texts
    page.get_by_role("button", name="Again").click()  # another one does not
    page.get_by_text("Seed 4").wait_for()
    page.get_by_role("button", name="Again").wait_for()
    assert page.locator(".answer .text").all_inner_texts()[2:] != texts
    assert problems == []


def test_probabilities(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/lawyer", problems)
    ask(page, "abc")
    token = page.locator(".text span").first
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
    assert problems == []


def test_a_text_is_never_markup(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/lawyer", problems)
    ask(page, "<img src=x onerror=alert(1)><script>alert(2)</script>")
    assert page.locator(".turn img, .turn script").count() == 0
    assert "<img src=x" in page.locator(".turn .prompt").inner_text()
    assert problems == []


def test_stop(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/lawyer", problems)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("New tokens").fill("200")
    page.get_by_label("Prompt").fill("abc")
    page.get_by_role("button", name="Continue").click()
    page.locator(".text span").first.wait_for()
    page.get_by_role("button", name="Stop").last.click()
    page.get_by_text("stopped").first.wait_for()
    assert page.locator(".text span").count() > 0
    assert problems == []


def test_a_blind_vote(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/lawyer", problems)
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
    assert problems == []


def test_a_mix(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)
    page.get_by_label("Model 2").select_option("Mix …")
    page.get_by_role("button", name="Use this mix").click()  # without factors it is none
    page.get_by_label("poet").fill("0.5")
    page.get_by_label("lawyer").fill("-1")
    page.get_by_role("button", name="Use this mix").click()
    ask(page, "abc")
    assert page.locator(".answer h2").all_inner_texts() == ["base", "-1 lawyer + 0.5 poet"]
    assert page.locator(".answer").nth(1).get_attribute("data-state") == "done"
    assert problems == []


def test_a_conversation(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/" + "歌人", problems)
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
    assert problems == []


def test_an_opened_adapter_decides_between_chat_and_continuation(browser: Any, server: Running, problems: list[str]):
    for name, mode in (("歌人", "Chat"), ("poet", "Continue"), ("歌人", "Chat")):
        page = open_page(browser, f"{server.url}/#talk/{name}", problems)
        assert page.get_by_label(mode, exact=True).is_checked()
    page.get_by_text("Continue", exact=True).first.click()
    page.evaluate("location.hash = 'talk'")
    page.wait_for_load_state("networkidle")
    assert page.get_by_label("Continue", exact=True).is_checked()
    assert problems == []


def test_adapters_of_the_command_are_chosen_at_first(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)
    assert page.get_by_label("Model 2").input_value() == "broken"
    server.adapters.folders["歌人"] = server.library / "歌人"
    try:
        page.reload()
        page.get_by_label("Model 2").wait_for()
        assert page.get_by_label("Model 2").input_value() == "歌人"
        assert page.get_by_label("Chat", exact=True).is_checked()
        page.get_by_label("Model 2").select_option("poet")
        page.reload()
        page.get_by_label("Model 2").wait_for()
        assert page.get_by_label("Model 2").input_value() == "poet"
    finally:
        del server.adapters.folders["歌人"]
    assert problems == []


def test_the_address_may_change_before_the_first_drawing(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)
    page.route("**/messages/shell.en.json", lambda route: (page.wait_for_timeout(500), route.continue_()))
    page.reload(wait_until="commit")
    page.evaluate("location.hash = 'runs'")
    page.locator('.view[data-view="runs"] h1').first.wait_for(state="attached")
    assert problems == []


def test_the_oldest_turns_are_left_out_of_the_context_and_the_page_says_so(
    browser: Any, server: Running, problems: list[str]
):
    page = open_page(browser, server.url + "/#talk/" + "歌人", problems)
    page.get_by_text("Chat", exact=True).click()
    for _ in range(4):
        ask(page, "on the mountain " * 5, 40)
    assert page.locator(".answer[data-state=failed]").count() == 0
    assert "oldest turns left out" in page.locator(".answer .note").last.inner_text()
    assert problems == []


def test_history(browser: Any, server: Running, problems: list[str], tmp_path: Path):
    page = open_page(browser, server.url + "/#talk/poet", problems)
    ask(page, "<b>abc</b>")
    texts = page.locator(".answer .text").all_inner_texts()
    page.reload()
    page.locator(".turn").wait_for()
    assert page.locator(".answer .text").all_inner_texts() == texts
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0
    page.get_by_role("button", name="History").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "conversations.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Forget all").click()
    assert page.locator("dialog li").count() == 0
    (tmp_path / "other.json").write_text('{"format": "tsugiki-conversations-1", "conversations": [{"id": 1}]}')
    for path, said in ((tmp_path / "other.json", "no file"), (file, "Imported: 1")):
        page.get_by_label("Import").set_input_files(path)
        page.get_by_text(said).wait_for()
    page.locator("dialog").get_by_role("button", name="<b>abc</b>", exact=True).click()
    assert page.locator(".answer .text").all_inner_texts() == texts
    assert problems == []


def test_an_answer_is_asked_again(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/poet", problems)
    page.route("**/v1/completions", lambda route: route.abort())
    ask(page, "abc")
    assert page.locator(".answer[data-state=failed]").count() == 2
    page.unroute("**/v1/completions")
    page.get_by_role("button", name="Try again").first.click()
    page.locator(".answer[data-state=done]").wait_for()
    assert page.locator(".answer .text").first.inner_text()


def test_settings_do_not_cover_the_answers_of_a_phone(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url + "/#talk/poet", problems, width=390)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Prompt").fill("abc")
    page.get_by_role("button", name="Continue").click()
    page.locator(".turn").get_by_role("button", name="Again").wait_for()
    assert not page.get_by_label("Temperature").is_visible()
    assert page.locator(".composer").bounding_box()["height"] < 300


def test_markdown_is_shown_and_never_acts(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)
    text = "# Branch\n\n- **cut** `a<b>`\n- *grow*\n\n```js\n<script>alert(1)</script>\n```\n> so\n\n2. two\nend\n"
    text += "| a | b |\n|---|---|\n| 1 | 2 |\n\n[here](javascript:alert(2)) [there](https://example.org) "
    text += "<img src=x onerror=alert(3)>"
    script = """async (text) => {
      const { markdown, hasMarkup } = await import("/page/views/talk/markdown.js");
      const root = document.createElement("div");
      root.append(...markdown(text));
      document.body.append(root);
      const tags = [...root.querySelectorAll("*")].map((one) => one.localName);
      return [tags, root.textContent, hasMarkup(text), hasMarkup("a * b, 2 > 1 and x_y"), hasMarkup("春の朝")];
    }"""
    tags, shown, *marked = page.evaluate(script, text)
    assert not {"script", "img", "a", "b"} & set(tags)
    assert {"ul", "ol", "strong", "em", "code", "pre", "table", "blockquote"} <= set(tags)
    for part in ("Branch", "<script>alert(1)</script>", "[here](javascript:alert(2))", "there (https://example.org)"):
        assert part in shown
    assert "<img src=x onerror=alert(3)>" in shown
    assert marked == [True, False, False]
    assert problems == []


def test_the_key_is_asked(browser: Any, served_files: tuple[str, Path], problems: list[str]):
    for running in start(*served_files, api_key="secret"):
        page = open_page(browser, running.url, problems)
        for key in ("wrong", "secret"):
            page.get_by_label("Key").fill(key)
            page.get_by_role("button", name="Continue").click()
        page.get_by_label("Prompt").wait_for()
        page.reload()
        page.get_by_label("Prompt").wait_for()
        assert page.evaluate("JSON.stringify({...localStorage})").count("secret") == 0


def test_functions_of_the_page(browser: Any, server: Running, problems: list[str]):
    page = open_page(browser, server.url, problems)

    def call(module: str, function: str, *arguments: Any) -> Any:
        script = "async ([module, name, values]) => (await import(module))[name](...values)"
        return page.evaluate(script, [f"/page/views/talk/{module}.js", function, list(arguments)])

    def tokens(*texts: str) -> list[dict[str, str]]:
        return [{"text": text} for text in texts]

    def pieces(text: str, *texts: str) -> list[tuple[str, int]]:
        return [(part["text"], len(part["tokens"])) for part in call("generate", "split", text, tokens(*texts))]

    assert pieces("ab", "a", "b") == [("a", 1), ("b", 1)]
    assert pieces("a", "a", "<end>") == [("a", 1)]
    assert pieces("鬱", "<0xE9>", "<0xAC>", "<0xB1>") == [("鬱", 3)]
    assert pieces(" a", "a") == [(" a", 1)]
    for won, count in (
        (7, 12),
        (0, 1),
        (3, 3),
    ):  # Wilson's bounds are the shares from which the result is 1.96 errors off
        for bound in call("votes", "interval", won, count):
            error = math.sqrt(bound * (1 - bound) / count)
            assert abs(won / count - bound) == pytest.approx(1.96 * error, abs=1e-9)
    assert call("models", "labelOf", 'mix:{"a":0.5,"b":2}') == "0.5 a + 2 b"
