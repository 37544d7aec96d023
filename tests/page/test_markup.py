"""A text for the browser: nothing in it begins HTML, and it stays the text that it was."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewise.page.markup import SIGN, make_inert, restore

ATTACKS = (
    '<div style="position:fixed;inset:0">x</div>',
    "<svg onload=alert(1)>",
    "</div><!-- x --><!DOCTYPE html><?php ?><![CDATA[x]]>",
    "\\<b class=tw-box>",
    "$$\n```\n<img src=x>\n```\n$$",
    "<\ufdd0div><<a>><\ufdd0<b>",
)
PIECES = st.sampled_from(
    [
        "<",
        ">",
        "!",
        "[",
        "]",
        "(",
        "x",
        " ",
        "/",
        "`",
        "```",
        "~~~",
        "mermaid",
        "\ufdd0",
        "\ufeff",
        "\xa0",
        "&lt;",
        "\n",
        "\\",
    ]
)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append("declaration")

    def unknown_decl(self, data: str) -> None:
        self.found.append("declaration")

    def handle_pi(self, data: str) -> None:
        self.found.append("instruction")


def find_tags(text: str) -> list[str]:
    tags = Tags()
    tags.feed(text)
    tags.close()
    return tags.found


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_html_parser_finds_text_alone_wherever_an_answer_is_put(attack: str) -> None:
    assert find_tags(attack)
    for length in range(len(attack) + 1):  # as it streams
        assert not find_tags(make_inert(attack[:length]) + " rest")


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_every_text_is_inert_and_comes_back_without_signs(text: str) -> None:
    inert = make_inert(text)
    assert restore(inert) == text.replace(SIGN, "")
    assert make_inert(inert) == inert
    assert "![" not in inert
    assert not re.search(r"(```|~~~)([^\S\n]|\ufeff)*mermaid", inert, re.IGNORECASE)
    assert not find_tags(inert + " rest")


@pytest.mark.parametrize(
    "text", ["a < b", "x<5 && y > 3", "**bold** `code` | a | b |", "- [link](https://x.example)", "$$a<1$$", "a\u2060b"]
)
def test_a_text_that_begins_nothing_is_left_as_it_is(text: str) -> None:
    assert make_inert(text) == text
