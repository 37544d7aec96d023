import dataclasses
import json
import os

import pytest

from tests.messages import mentions
from tilewise import demo
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig
from tilewise.errors import ConfigError, InputError
from tilewise.inputs.conversation import ImagePart, Message
from tilewise.inputs.text.layout import ImageSlot, Special, render
from tilewise.inputs.text.profile_choice import choose_profile
from tilewise.inputs.text.profiles import PROFILES, PromptProfile


@pytest.fixture(scope="module")
def model():
    return load_model_config(demo.model_folder())


def flat(segments):
    """One string: special tokens as «name», slots as #number."""
    shown = {str: str, Special: lambda s: f"«{s.name}»", ImageSlot: lambda s: f"#{s.number}"}
    return "".join(shown[type(segment)](segment) for segment in segments)


def user(*parts):
    return [Message("user", parts)]


A, B = ImagePart("a"), ImagePart("b")
NAMES = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<|plugin|>", "<|action_start|>", "<|action_end|>")
PLAIN = PromptProfile("plain", "", system="", user="U:", assistant="A:", turn_end="<|im_end|>")


def test_default_follows_the_template(model):
    assert choose_profile(model) == PROFILES["internvl-internlm2"]


def test_profile_can_be_chosen_and_changed(model):
    chosen = choose_profile(model, ChatTemplateConfig("internvl-official", "Be brief.", ("###",)))
    assert (chosen.turn_end, chosen.meta_instruction, chosen.stop_words) == ("<|im_end|>", "Be brief.", ("###",))


def test_unknown_profile_is_refused_with_the_known_ones(model):
    with pytest.raises(ConfigError, match="internvl-internlm2"):
        choose_profile(model, ChatTemplateConfig("vicuna"))


def test_unknown_template_is_refused_with_the_remedy(model):
    with pytest.raises(ConfigError, match="--chat-template"):
        choose_profile(dataclasses.replace(model, template="other"))


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        (("q",), "q"),
        (("q", "r"), "q\nr"),
        ((A, "q"), "«<img>»#0«</img>»\nq"),
        ((A, B, "q"), "«<img>»#0«</img>»\n«<img>»#1«</img>»\nq"),
        (("q", A, "r", B), "q«<img>»#0«</img>»\nr«<img>»#1«</img>»\n"),
        ((A,), "«<img>»#0«</img>»\n"),
    ],
)
def test_parts_keep_their_order_and_pictures_break_the_line(parts, body):
    assert flat(render(PLAIN, user(*parts), NAMES)) == f"U:{body}«<|im_end|>»A:"


def test_pictures_are_numbered_through_the_conversation():
    messages = [*user(A, "q"), Message("assistant", ("r",)), *user("s", B)]
    expected = "U:«<img>»#0«</img>»\nq«<|im_end|>»A:r«<|im_end|>»U:s«<img>»#1«</img>»\n«<|im_end|>»A:"
    assert flat(render(PLAIN, messages, NAMES)) == expected


def test_system_message_takes_the_default_sentences_place():
    messages = [Message("system", ("S",)), *user("q")]
    text = flat(render(PROFILES["internvl-internlm2"], messages, NAMES))
    assert text.startswith("«<|im_start|>»system\nS«<|im_end|>»\n«<|im_start|>»user\nq")
    assert "InternLM" not in text


def test_empty_system_sentence_leaves_the_block_out():
    assert flat(render(PLAIN, [Message("system", ("",)), *user("q")], NAMES)) == "U:q«<|im_end|>»A:"


def test_names_of_special_tokens_in_messages_stay_text():
    words = "<|im_end|><img></img><s>{n}"
    assert render(PLAIN, user(words), NAMES)[0] == f"U:{words}"


def test_neighbouring_texts_are_one_segment_of_whatever_kind_of_str():
    class Name(str):
        __slots__ = ()

    for last in ("s", Name("s")):
        assert render(PLAIN, user("q", "r", last), NAMES) == ("U:q\nr\ns", Special("<|im_end|>"), "A:")


def test_turns_out_of_order_are_refused():
    with pytest.raises(InputError, match="last message"):
        render(PLAIN, [*user("q"), Message("assistant", ("r",))], NAMES)


def test_profile_file_changes_what_it_names(model, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"base": "internvl-official", "meta_instruction": "Hi", "stop_words": ["###"]}))
    chosen = choose_profile(model, ChatTemplateConfig(str(path)))
    assert (chosen.name, chosen.meta_instruction, chosen.turn_end) == ("mine", "Hi", "<|im_end|>")
    assert chosen.stop_words == ("###",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"sytem": "x"}, "'sytem'"),
        ({"user": 1}, mentions("user", "string")),
        ({"base": "x"}, "base 'x'"),
        ({"base": ["x"]}, mentions("base", "string")),
        ({"stop_words": "x"}, "stop_words"),
        ({"stop_words": [""]}, "stop_words"),
        ([], "JSON object"),
    ],
)
def test_malformed_profile_file_is_refused_by_key(model, tmp_path, content, match):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=match):
        choose_profile(model, ChatTemplateConfig(str(path)))


def test_unreadable_profile_file_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=mentions("none.json", "--chat-template")):
        choose_profile(model, ChatTemplateConfig(str(tmp_path / "none.json")))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=mentions("bad.json", "JSON")):
        choose_profile(model, ChatTemplateConfig(str(tmp_path / "bad.json")))


def test_a_pipe_or_a_huge_profile_file_is_refused_for_what_it_is(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "huge.json").write_text(json.dumps({"user": "x" * (1 << 20)}))
    for name, match in (("pipe.json", "pipe"), ("huge.json", "1024 KiB")):
        with pytest.raises(ConfigError, match=mentions(name, match, "--chat-template")):
            choose_profile(model, ChatTemplateConfig(str(tmp_path / name)))


def test_labels_of_a_later_turn_change_nothing_of_an_earlier_one_and_numbers_go_on():
    profile = dataclasses.replace(PLAIN, image_label="Image-{n}: ")
    first = user(A, "one?")
    later = [*first, Message("assistant", ("yes",)), Message("user", (B, "two?"))]
    written = flat(render(profile, later, NAMES))
    assert written.startswith(flat(render(profile, first, NAMES)))
    assert "Image-1" not in written
    assert "Image-2: «<img>»" in written


def test_a_label_behind_text_begins_a_line():
    profile = dataclasses.replace(PLAIN, image_label="Image-{n}: ")
    assert "see\nImage-2: «<img>»" in flat(render(profile, user(A, "see", B, "which?"), NAMES))


def test_a_users_label_leaves_what_follows_a_picture():
    profile = dataclasses.replace(PLAIN, image_label="Picture {n}: ")
    assert flat(render(profile, user(A, B, "which?"), NAMES)).count("«</img>»\n") == 2
