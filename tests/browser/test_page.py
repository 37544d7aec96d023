"""The page as a person with a browser meets it."""

import base64
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.browser.conftest import Relay, Visit
from tests.serving.openai.openai_double import Double, Refusal
from tilewise.client import APIClient
from tilewise.demo import picture_path
from tilewise.page.uploads import UploadLimits

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    # Of gradio and of playwright themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]

DESCRIBE = "请描述图中内容"
BOX = "Find the yellow cross and mark it with a box."
GO_ON = ("word ",) * 10_000
PATIENCE_S = 10.0


def count_running(server: tuple[str, str]) -> float:
    url, key = server
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"}, trust_env=False).text
    return sum(float(n) for n in re.findall(r"^vllm:num_requests_running(?:\{.*\})? (\S+)$", text, re.MULTILINE))


def wait_running(server: tuple[str, str], number: int) -> float:
    """Seconds until so many requests run."""
    started_at = time.monotonic()
    while count_running(server) != number:
        assert time.monotonic() - started_at < PATIENCE_S
        time.sleep(0.02)
    return time.monotonic() - started_at


def test_a_picture_is_uploaded_asked_about_by_enter_and_answered(visit: Visit, served: str) -> None:
    visitor = visit(served).open()
    visitor.attach(picture_path())
    visitor.ask(DESCRIBE)
    assert visitor.wait().strip()
    assert "7 × 256 = 1,792 tokens" in visitor.tab.locator(".tw-panel").inner_text()
    visitor.ask(BOX)
    assert visitor.wait().strip()
    assert visitor.answers.count() == 2
    visitor.show("page-en")
    visitor.tab.get_by_role("tab", name="Code").click()
    assert "data:;base64,$(base64 < picture.png" in visitor.tab.locator(".cm-content:visible").inner_text()


def test_the_page_speaks_chinese_to_a_chinese_browser_and_fits_a_phone(visit: Visit, served: str) -> None:
    for name, size in (("page-zh", (1280, 800)), ("page-phone", (390, 844))):
        visitor = visit(served, locale="zh-CN", size=size).open()
        visitor.tab.get_by_text(DESCRIBE).first.click()
        visitor.wait()
        assert "首个词元" in visitor.tab.locator(".tw-panel").inner_text()
        assert visitor.tab.evaluate("document.documentElement.scrollWidth") == size[0]
        visitor.show(name)


def test_stop_stops_the_engine_and_what_was_said_stays(visit: Visit, long_winded: str, server: tuple[str, str]) -> None:
    visitor = visit(long_winded).open()
    visitor.attach(picture_path())
    visitor.tab.get_by_role("tab", name="Settings").click()
    visitor.tab.locator("input[type=number]").first.fill("4096")
    visitor.ask("go on")
    wait_running(server, 1)
    visitor.answers.last.wait_for()
    visitor.tab.locator(".stop-button").click()
    print(f"stopped after {wait_running(server, 0):.2f} s")
    visitor.tab.locator(".submit-button").wait_for()
    visitor.ask("and now?")
    wait_running(server, 1)


def test_leaving_the_page_stops_the_engine(visit: Visit, long_winded: str, server: tuple[str, str]) -> None:
    visitor = visit(long_winded).open()
    wait_running(server, 0)
    visitor.tab.get_by_role("tab", name="Settings").click()
    visitor.tab.locator("input[type=number]").first.fill("4096")
    visitor.ask("go on")
    wait_running(server, 1)
    visitor.tab.close()
    wait_running(server, 0)


def test_two_pictures_are_two_pictures_to_the_model(visit: Visit, served: str, tmp_path: Path) -> None:
    Image.new("RGB", (448, 448), "teal").save(tmp_path / "teal.png")
    visitor = visit(served).open()
    visitor.attach(picture_path(), tmp_path / "teal.png")
    visitor.ask("Are the two pictures the same?")
    visitor.wait()
    told = visitor.tab.locator(".tw-panel").inner_text()
    assert "Picture 2" in told
    assert "448×448 → 1×1: 1 × 256 = 256 tokens" in told
    assert re.search(r"of pictures\s+2,048", told)


def test_pictures_are_pasted_and_dropped(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    visitor = visit(address).open()
    give = """(box, [data, kind]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
        const options = {bubbles: true, cancelable: true};
        box.dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", {...options, clipboardData: transfer})
                                           : new DragEvent("drop", {...options, dataTransfer: transfer}));
    }"""

    data = base64.b64encode(picture_path().read_bytes()).decode()
    for number, kind in enumerate(("paste", "drop")):
        visitor.box.evaluate(give, [data, kind])
        visitor.tab.locator(".thumbnail-item").nth(number).wait_for()
    visitor.ask("what?")
    visitor.wait()
    assert [part["type"] for part in double.bodies[0]["messages"][0]["content"]] == ["image_url", "image_url", "text"]


def test_boxes_are_drawn_on_the_picture(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    double.script = lambda body: ("<ref>", "purple heart", "</ref>", "<box>", "[[250, 500, 750, 1000]]", "</box>")
    visitor = visit(address).open()
    visitor.attach(picture_path())
    visitor.ask(BOX)
    assert visitor.wait().strip() == "purple heart [[250, 500, 750, 1000]]"
    drawn = visitor.tab.locator(".tw-box").bounding_box()
    picture = visitor.tab.locator(".tw-boxed img").bounding_box()
    assert drawn["x"] == pytest.approx(picture["x"] + picture["width"] / 4, abs=1)
    assert drawn["y"] + drawn["height"] == pytest.approx(picture["y"] + picture["height"], abs=1)


def test_retry_undo_and_edit_ask_with_the_same_picture(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    visitor = visit(address).open()
    visitor.attach(picture_path())
    visitor.ask("what?")
    visitor.wait()
    visitor.forget()
    visitor.press("Retry")
    visitor.wait()
    visitor.forget()
    visitor.press("Edit")
    visitor.tab.locator("textarea.edit-textarea").fill("what else?")
    visitor.tab.get_by_label("Submit", exact=True).first.click()
    visitor.wait()
    first, again, edited = (body["messages"] for body in double.bodies)
    assert again == first
    assert edited[0]["content"][0] == first[0]["content"][0]
    assert edited[0]["content"][1]["text"] == "what else?"
    assert len(edited) == 1
    visitor.press("Undo")
    visitor.answers.first.wait_for(state="detached")
    assert visitor.box.input_value() == "what else?"
    assert visitor.tab.locator(".thumbnail-item").count() == 1


def test_a_conversation_comes_back_from_the_history_after_a_reload(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    visitor = visit(address).open()
    visitor.ask("remember this <b>")
    visitor.wait()
    kept = visitor.tab.locator(".tw-history").get_by_text("remember this <b>")
    kept.wait_for()
    visitor.open()
    assert visitor.answers.count() == 0
    kept.click()
    visitor.answers.first.wait_for()
    assert visitor.tab.locator(".message.user").inner_text() == "remember this <b>"
    visitor.ask("and?")
    visitor.wait()
    sent = double.bodies[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[0]["content"][0]["text"] == "remember this <b>"


def test_the_language_is_the_browsers_until_a_link_is_followed(visit: Visit, doubled: tuple[str, Double]) -> None:
    visitor = visit(doubled[0], locale="en-GB").open()
    assert visitor.tab.get_by_role("tab", name="What the model sees").count() == 1
    assert "drawn scenes" in visitor.tab.locator(".tw-head + .tw-note").inner_text()
    visitor.tab.get_by_role("link", name="中文").click()
    visitor.tab.get_by_role("tab", name="模型所见").wait_for()
    assert "演示模型" in visitor.tab.locator(".tw-head + .tw-note").inner_text()
    visitor.open()
    visitor.tab.get_by_role("tab", name="模型所见").wait_for()


@pytest.mark.parametrize("before", [(), ("half ",)])
def test_a_failure_is_told_in_words_and_the_next_question_goes_through(
    visit: Visit, doubled: tuple[str, Double], before: tuple[str, ...]
) -> None:
    address, double = doubled
    double.script = lambda body: Refusal(200 if before else 429, "The queue is full.", "capacity", before)
    visitor = visit(address).open()
    visitor.ask("hello")
    visitor.tab.get_by_text("The queue is full.").wait_for()
    double.script = Double().script
    visitor.ask("hello again")
    assert "The answer is 42." in visitor.wait()
    assert double.bodies[-1]["messages"][-1]["content"][0]["text"] == "hello again"


def test_an_answers_markup_loads_nothing_from_other_hosts(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    with Double() as canary:
        double.script = lambda body: (f"![x]({canary.url}/a.png) <img src='{canary.url}/b.png'> done",)
        visitor = visit(address).open()
        visitor.ask("hello")
        assert "done" in visitor.wait()
        visitor.tab.wait_for_timeout(500)
        assert not canary.asked


ATTACK = """Sums: `a < b`, a <b, vector<int> and `<div>`.
<div style="position:fixed;inset:0;background:#fff;z-index:9999" class="tw-box" id="x" onclick="y()">COVER</div>
<svg onload=alert(1)></svg><iframe src=x></iframe><form><input name=q></form><details open>d</details>

$$
```
<b style="position:fixed;inset:0">FORMULA</b>
```
$$

```html
<p class="a">x &lt; y</p>
```

```mermaid
graph TD; A-->B
```

- [x] done

| a | b |
|---|---|
| 1 | `<i>` |

$$x<y^2 \\rule{99em}{9em}$$
"""


def test_an_answers_markup_is_text_and_reads_as_it_was_written(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    double.script = lambda body: [ATTACK[start : start + 7] for start in range(0, len(ATTACK), 7)]
    visitor = visit(address).open()
    visitor.ask("hello <b>you</b> <script>x")
    visitor.wait()
    visitor.tab.locator(".message.bot .katex").last.wait_for()
    visitor.show("answer-inert")
    answer = visitor.answers.last.locator(".md")
    read = answer.inner_text()
    for line in ATTACK.splitlines()[1:3]:
        assert line in read
    assert "Sums: a < b, a <b, vector<int> and <div>." in read
    assert answer.locator("pre code").all_inner_texts() == ['<p class="a">x &lt; y</p>\n', "graph TD; A-->B\n"]
    assert [row.inner_text() for row in answer.locator("td").all()] == ["1", "<i>"]
    assert (
        answer.locator("[style]:not(.katex *), [id], .tw-box, iframe, form, input, details, b, p.a, .mermaid").count()
        == 0
    )
    assert answer.locator("svg:not(.copy_code_button svg), img").count() == 0
    assert visitor.tab.locator(".message.user").inner_text() == "hello <b>you</b> <script>x"
    # Nothing of it lies before the page's other half, however large it is drawn.
    for name in ("Settings", "Code"):
        visitor.tab.get_by_role("tab", name=name, exact=True).click()
    visitor.tab.get_by_role("tab", name="What the model sees").click()
    visitor.ask("and?")
    visitor.wait()
    sent = double.bodies[-1]["messages"]
    assert [message["content"] for message in sent if message["role"] == "assistant"] == [ATTACK.strip()]


def test_links_of_an_answer_say_where_they_go(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    said = "[your bank](https://bank.example@evil.example/x), https://plain.example/y, <https://angle.example/z>! "
    said += "https://bank.example@plain.example/ [the docs](<https://docs.example/a b>) [r]\n\n[r]: <https://r.example>"
    double.script = lambda body: (said + "\n\n[x](javascript:alert(1)) [y](<javascript:alert(1)>)",)
    visitor = visit(address).open()
    visitor.ask("hello")
    visitor.wait()
    links = visitor.answers.last.locator("a[href]")
    hosts = "link => [link.innerText, link.getAttribute('href'), getComputedStyle(link, '::after').content]"
    shown = [link.evaluate(hosts) for link in links.all()]
    assert [text for text, _, _ in shown] == [
        "your bank",
        "https://plain.example/y",
        "https://angle.example/z",
        "https://bank.example@plain.example/",
        "the docs",
        "r",
    ]
    told = [re.findall(r"\(([\w.]+)\)", where) for _, _, where in shown]
    assert told == [["evil.example"], [], [], ["plain.example"], ["docs.example"], ["r.example"]]
    assert shown[2][1] == "https://angle.example/z"
    assert shown[4][1] == "https://docs.example/a%20b"
    for link in links.all():
        assert link.get_attribute("target") == "_blank"
        assert set((link.get_attribute("rel") or "").split()) == {"noopener", "noreferrer", "nofollow"}


def test_no_text_turns_the_host_of_a_link_around(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    double.script = lambda body: ("\u202e [\u202eyour\u2067 bank](https://evil.example/x)",)
    visitor = visit(address).open()
    visitor.ask("hello")
    visitor.wait()
    link = visitor.answers.last.locator("a[href]")
    assert link.inner_text() == "your bank"
    style = "(link, part) => {const s = getComputedStyle(link, part); return [s.unicodeBidi, s.direction, s.display]}"
    assert link.evaluate(f"link => ({style})(link, null)[0]") == "isolate"
    assert link.evaluate(f"link => ({style})(link, '::after')") == ["isolate", "ltr", "inline-block"]


@pytest.mark.parametrize(
    "said",
    [
        "[X](https://x.com)",
        "- [X](https://x.com)",
        "# [ ](https://x.com)",
        "[x]\n\n[x]: https://x.com",
        "$$\\sqrt[x]{8}$$",
        "$$\\left<y\\right>$$",
        "a\u2060b <\u2060c \ufdd0 <\ufdd0d",
    ],
)
def test_no_text_of_an_answer_or_a_question_keeps_the_tab_busy(
    visit: Visit, doubled: tuple[str, Double], said: str
) -> None:
    address, double = doubled
    double.script = lambda body: (said,)
    visitor = visit(address).open()
    visitor.ask(said)
    visitor.wait()
    count = """() => new Promise(done => {
        let changes = 0;
        const watch = new MutationObserver(records => changes += records.length);
        watch.observe(document.querySelector(".message.bot"), {subtree: true, childList: true, characterData: true});
        setTimeout(() => done(changes), 300);
    })"""
    assert visitor.tab.evaluate(count) == 0
    assert "\ufdd0" not in visitor.tab.locator(".message-wrap").inner_html()


def test_no_sign_reaches_the_edit_box_or_the_model(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    double.script = lambda body: ("yes \ufdd0<b>",)
    visitor = visit(address).open()
    visitor.ask("is \ufdd0<b> bold?")
    visitor.wait()
    visitor.forget()
    visitor.press("Edit")
    box = visitor.tab.locator("textarea.edit-textarea")
    box.wait_for()
    visitor.tab.evaluate("() => new Promise(requestAnimationFrame)")
    assert box.input_value() == "is <b> bold?"
    visitor.tab.get_by_label("Submit", exact=True).first.click()
    visitor.wait()
    visitor.ask("and <i>?")
    visitor.wait()
    assert [body["messages"][0]["content"][0]["text"] for body in double.bodies] == ["is <b> bold?"] * 3
    assert double.bodies[2]["messages"][1]["content"] == "yes <b>"


def test_over_plain_http_a_copied_answer_is_the_answer(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    said = "see <b>this</b> ![x](y)"
    double.script = lambda body: (said,)
    visitor = visit(address)
    visitor.tab.add_init_script("delete Navigator.prototype.clipboard")
    visitor.tab.add_init_script(
        "addEventListener('copy', event => "
        "window.copied = event.defaultPrevented && event.clipboardData.getData('text/plain'))"
    )
    visitor.open().ask("hello")
    visitor.wait()
    assert visitor.tab.evaluate("'clipboard' in navigator") is False
    visitor.press("Copy message")
    assert visitor.tab.evaluate("window.copied") == said


def test_a_copied_answer_is_the_answer(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    said = "see <b>this</b> ![x](y) and `vector<int>`"
    double.script = lambda body: (said,)
    visitor = visit(address).open()
    visitor.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.ask("hello")
    visitor.wait()
    visitor.press("Copy message")
    assert visitor.tab.evaluate("navigator.clipboard.readText()") == said


def test_a_page_whose_connections_broke_keeps_its_pictures(visit: Visit, launch: Callable[..., str]) -> None:
    limits = UploadLimits(grace_s=4.0)
    with Double() as double, Relay(launch(APIClient(double.url), upload_limits=limits)) as relay:

        def count_heartbeats() -> int:
            return sum(head.startswith(b"GET /gradio_api/heartbeat/") for head in relay.heads)

        visitor = visit(relay.address).open()
        visitor.attach(picture_path())
        assert count_heartbeats() == 1
        relay.cut()
        deadline = time.monotonic() + PATIENCE_S
        while count_heartbeats() < 2:
            assert time.monotonic() < deadline
            visitor.tab.evaluate("dispatchEvent(new Event('online'))")  # as when a laptop wakes up
            visitor.tab.wait_for_timeout(200)
        visitor.tab.wait_for_timeout(2000 * limits.grace_s)
        visitor.ask("what?")
        assert "The answer is 42." in visitor.wait()
        assert double.bodies[0]["messages"][0]["content"][0]["type"] == "image_url"


def test_a_saved_chat_whose_pictures_are_gone_is_shown_without_them(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, _ = doubled
    visitor = visit(address).open()
    pictures = Path(os.environ["GRADIO_TEMP_DIR"]).glob
    before = set(pictures("*/*"))
    visitor.attach(picture_path())
    visitor.ask("look at this")
    visitor.wait()
    visitor.tab.locator(".tw-history").get_by_text("look at this").wait_for()
    for picture in set(pictures("*/*")) - before:
        picture.unlink()
    visitor.open()
    visitor.tab.locator(".tw-history").get_by_text("look at this").click()
    visitor.tab.get_by_text("Attach it again").wait_for()
    assert visitor.tab.locator(".message img").count() == 0
    visitor.ask("and?")
    assert "The answer is 42." in visitor.wait()


@pytest.mark.parametrize(("locale", "words"), [("en-US", "This is no picture"), ("zh-CN", "无法识别为图片")])
def test_a_refused_upload_is_told_in_the_pages_language(
    visit: Visit, doubled: tuple[str, Double], tmp_path: Path, locale: str, words: str
) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    visitor = visit(doubled[0], locale=locale).open()
    visitor.tab.set_input_files("input[type=file]", str(tmp_path / "fake.png"))
    visitor.tab.get_by_text(words).wait_for()
    assert "fake.png" in visitor.tab.locator(".toast-body").inner_text()
    visitor.tab.wait_for_timeout(500)  # it fades in
    visitor.show(f"refused-{locale}")
    visitor.attach(picture_path())
    visitor.ask("what?")
    assert "The answer is 42." in visitor.wait()


def test_a_label_cannot_be_markup(visit: Visit, doubled: tuple[str, Double]) -> None:
    address, double = doubled
    attack = "<img src=x onerror=document.title='owned'>"
    double.script = lambda body: (f"<ref>{attack}</ref><box>[[1, 2, 300, 400]]</box>",)
    visitor = visit(address).open()
    visitor.attach(picture_path())
    visitor.ask("hello")
    visitor.wait()
    assert visitor.tab.locator(".tw-box").inner_text() == attack
    assert visitor.tab.title() == "Tilewise"
