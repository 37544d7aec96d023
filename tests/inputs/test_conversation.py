import pytest

from tests.messages import mentions
from tilewise.errors import InputError
from tilewise.inputs.conversation import ImagePart, Message, check_turns, is_message_list, parse_prompt


def user(*parts):
    return (Message("user", parts),)


HUGE = "x" * 1_000_000


def content(*parts):
    return [{"role": "user", "content": list(parts)}]


TEXT = {"type": "text", "text": "q"}


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("q", user("q")),
        ("see <IMAGE_TOKEN>", user("see <IMAGE_TOKEN>")),
        (("q", "a.png"), user(ImagePart("a.png"), "q")),
        (("q", ["a.png", "b.png"]), user(ImagePart("a.png"), ImagePart("b.png"), "q")),
        (("", "a.png"), user(ImagePart("a.png"))),
        (("q", []), user("q")),
        (("1 <IMAGE_TOKEN>2<IMAGE_TOKEN>\n3", ["a", "b"]), user("1 ", ImagePart("a"), "2", ImagePart("b"), "3")),
        (content(TEXT, {"type": "image_url", "image_url": {"url": "u"}}, TEXT), user("q", ImagePart("u"), "q")),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": "q", "name": None}],
            (Message("system", ("s",)), *user("q")),
        ),
    ],
)
def test_every_call_form_is_read_in_order(prompt, messages):
    assert parse_prompt(prompt) == messages


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({}, ImagePart("u")),
        ({"detail": "auto"}, ImagePart("u")),
        ({"detail": "low"}, ImagePart("u", detail="low")),
        ({"detail": "high", "min_dynamic_patch": 2}, ImagePart("u", None, 2, "high")),
        ({"max_dynamic_patch": 6, "min_dynamic_patch": 2}, ImagePart("u", 6, 2)),
    ],
)
def test_image_url_fields_are_kept(fields, part):
    prompt = content({"type": "image_url", "image_url": {"url": "u", **fields}})
    assert parse_prompt(prompt)[0].images == (part,)


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (7, "a int"),
        (None, "nothing"),
        ([], "list of messages"),
        ("", "empty"),
        (("q",), "pair"),
        (("q", "a", "b"), "pair"),
        ((None, "a"), "pair"),
        (("q", None), "None"),
        (("q", ["a", None]), "None"),
        (("<IMAGE_TOKEN>", ["a", "b"]), mentions("1 places", "2 pictures")),
        (("<IMAGE_TOKEN>", []), mentions("1 places", "0 pictures")),
        ([{"role": "tool", "content": "q"}], "'tool'"),
        ([{"content": "q"}], "role"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": "q", "tool_calls": []}], "'tool_calls'"),
        (content({"type": "video_url"}), "'video_url'"),
        (content({"type": "text"}), mentions("text")),
        (content({"type": "text", "text": "q", "x": 1}), "'x'"),
        (content("q"), mentions("object", "type")),
        (content({"type": "image_url", "image_url": "u"}), mentions("object", "url")),
        (content({"type": "image_url", "image_url": {}}), mentions("url")),
        (content({"type": "image_url", "image_url": {"url": "u", "zoom": 2}}), "'zoom'"),
        (content({"type": "image_url", "image_url": {"url": "u", "detail": "max"}}), "'max'"),
        (
            content({"type": "image_url", "image_url": {"url": "u", "detail": "low", "max_dynamic_patch": 3}}),
            mentions("detail", "max_dynamic_patch"),
        ),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
            mentions("system", "picture"),
        ),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(prompt, match):
    with pytest.raises(InputError, match=match):
        parse_prompt(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": HUGE, "content": "q"}],
        [{"role": "user", "content": "q", HUGE: 1}],
        content({"type": HUGE}),
        content({"type": "image_url", "image_url": {"url": "u", "detail": HUGE}}),
        content({"type": "image_url", "image_url": {"url": "u", "detail": [HUGE]}}),
        content({"type": "image_url", "image_url": {"url": "u", HUGE: 2}}),
    ],
)
def test_what_is_huge_is_refused_in_few_words(prompt):
    with pytest.raises(InputError) as refusal:
        parse_prompt(prompt)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("roles", ["u", "su", "uau", "suauau"])
def test_turns_in_order_pass(roles):
    names = {"s": "system", "u": "user", "a": "assistant"}
    check_turns([Message(names[role], ("x",)) for role in roles])


@pytest.mark.parametrize(
    ("roles", "match"),
    [
        ("", "last message"),
        ("s", "last message"),
        ("ua", "last message"),
        ("uu", "Message 2 .*'user'"),
        ("au", "Message 1 .*'assistant'"),
        ("usu", "Message 2 .*'system'"),
        ("ssu", "Message 2 .*'system'"),
        ("suaau", "Message 4 .*'assistant'"),
    ],
)
def test_turns_out_of_order_are_refused_with_the_place(roles, match):
    names = {"s": "system", "u": "user", "a": "assistant"}
    with pytest.raises(InputError, match=match):
        check_turns([Message(names[role], ("x",)) for role in roles])


def test_a_message_list_is_told_from_a_list_of_prompts():
    assert is_message_list([{"role": "user", "content": "q"}])
    assert not any(map(is_message_list, ([], ["q"], ["q", {"role": "user"}], "q", ({},))))
