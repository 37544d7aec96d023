"""Which prompt a checkpoint gets: by what its files say, and by the user; never by its folder's name."""

import dataclasses
import json
import logging
import re
import shutil

import pytest

from tests.family import FOLDER, HUGGING_FACE, SERVED, find_folder, name_release, write_changed
from tests.messages import mentions
from tilewise import demo
from tilewise.catalogue import RELEASES
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import ChatTemplateConfig
from tilewise.errors import CheckpointError, ConfigError
from tilewise.inputs.text.profile_choice import check_profile, choose_profile, fit_profile
from tilewise.inputs.text.profiles import PROFILES

BY_NAME = {release.name: release for release in RELEASES}
# Where V1-5 and InternVL2 have the same files: what is taken.
UNDECIDED = {
    "InternVL-Chat-V1-5": "internvl-internlm2",
    "InternVL2-26B": "internvl-internlm2",
    "Mini-InternVL-Chat-2B-V1-5": "internvl2-internlm2",
    "InternVL2-2B": "internvl2-internlm2",
}


def load(name):
    return load_model_config(find_folder(BY_NAME[name]))


@pytest.mark.parametrize("release", SERVED, ids=name_release)
def test_a_checkpoint_gets_its_own_profile_unless_the_files_fit_two(release):
    assert choose_profile(load(release.name)).name == UNDECIDED.get(release.name, release.profile)


@pytest.mark.parametrize("name", UNDECIDED)
def test_an_undecided_choice_is_said_in_the_log_once_with_both_remedies(caplog, name):
    chosen = choose_profile(load(name))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    pair = ("InternVL2-26B", "InternVL-Chat-V1-5") if "26B" in name or "Chat-V1-5" in name else ("InternVL2-2B",)
    for word in (*pair, chosen.name, "--chat-template", "internvl-internlm2", "internvl2-internlm2"):
        assert word in record.getMessage()


def test_a_decided_choice_is_not_said(caplog):
    for name in ("InternVL2-8B", "InternVL2-1B", "InternVL2_5-26B", "InternVL3-8B", "InternVL3_5-8B"):
        choose_profile(load(name))
    choose_profile(load_model_config(demo.model_folder()))
    assert not caplog.records


def test_a_named_profile_ends_the_doubt(caplog):
    assert (
        choose_profile(load("InternVL2-26B"), ChatTemplateConfig("internvl2-internlm2")).name == "internvl2-internlm2"
    )
    assert not caplog.records


def test_the_folders_name_decides_nothing(tmp_path):
    for name in ("InternVL3_5-8B", "InternVL2-1B"):
        folder = tmp_path / name
        shutil.copytree(FOLDER / "InternVL2-8B", folder)
        assert choose_profile(load_model_config(folder)).name == "internvl2-internlm2"


def test_sizes_of_no_release_get_the_profile_of_the_template(tmp_path):
    for name in ("InternVL2-1B", "InternVL3-8B", "InternVL2-8B"):
        expected = {"InternVL2-8B": "internvl-internlm2"}.get(name, BY_NAME[name].profile)
        folder = write_changed(BY_NAME[name], tmp_path, {"llm_config": {"num_hidden_layers": 3, "layer_types": None}})
        assert choose_profile(load_model_config(folder)).name == expected


def test_a_system_message_of_the_checkpoint_takes_the_place_of_the_templates(tmp_path):
    folder = write_changed(BY_NAME["InternVL3-8B"], tmp_path, {"system_message": "Be brief."})
    model = load_model_config(folder)
    assert choose_profile(model) == dataclasses.replace(PROFILES["internvl2_5"], meta_instruction="Be brief.")
    named = choose_profile(model, ChatTemplateConfig("internvl2_5-numbered"))
    assert named.meta_instruction == "Be brief."


def test_a_system_message_of_null_means_absent():
    config = json.loads((FOLDER / "InternVL3-1B" / "config.json").read_text())
    assert config["system_message"] is None
    assert choose_profile(load("InternVL3-1B")) == PROFILES["internvl2_5"]


def test_the_users_own_sentence_wins_over_the_checkpoints(tmp_path):
    model = dataclasses.replace(load("InternVL3-8B"), system_message="Be brief.")
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"base": "internvl2_5", "meta_instruction": "Be long."}))
    assert choose_profile(model, ChatTemplateConfig(str(mine))).meta_instruction == "Be long."
    assert choose_profile(model, ChatTemplateConfig(None, "Be long.")).meta_instruction == "Be long."


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_the_hugging_face_layout_gets_the_official_sentence_and_the_log_says_so(caplog, name):
    model = load_model_config(FOLDER / name)
    assert model.template is None
    caplog.set_level(logging.INFO, logger="tilewise")
    assert choose_profile(model) == PROFILES["internvl2_5"]
    (record,) = caplog.records
    assert re.search(mentions("template", "internvl2_5", "--chat-template"), record.getMessage())


def test_without_a_template_the_vocabulary_tells_qwen2_from_qwen2_5():
    model = load_model_config(FOLDER / "InternVL3-1B-hf")
    of_qwen2 = dataclasses.replace(model, decoder=load("InternVL2-1B").decoder)
    assert choose_profile(of_qwen2) == PROFILES["internvl2-hermes-2"]
    of_nobody = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, num_layers=3))
    assert choose_profile(of_nobody) == PROFILES["internvl2_5"]


@pytest.mark.parametrize("name", ["internvl2_5", "internvl2-hermes-2", "internvl2-internlm2"])
def test_from_internvl2_on_the_templates_separator_is_the_only_stop(name):
    assert PROFILES[name].stop_words == PROFILES[f"{name}-numbered"].stop_words == ("<|im_end|>",)


def test_only_internvl2_5_and_lmdeploys_form_have_a_line_break_behind_a_turn():
    with_break = {name for name, profile in PROFILES.items() if profile.turn_end == "<|im_end|>\n"}
    assert with_break == {"internvl-internlm2", "internvl2_5", "internvl2_5-numbered"}


def test_a_template_that_nobody_knows_is_refused_by_name():
    with pytest.raises(ConfigError, match=mentions("phi3-chat", "--chat-template", "internvl2_5")):
        choose_profile(dataclasses.replace(load("InternVL3-8B"), template="phi3-chat"))


def test_unlisted_sizes_of_internlm2_chat_are_said_to_be_a_guess(caplog):
    model = load("InternVL2-8B")
    pruned = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, num_layers=24))
    assert choose_profile(pruned).name == "internvl-internlm2"
    (record,) = caplog.records
    assert "internvl2-internlm2" in record.getMessage()


def test_internlm2_chat_over_another_language_model_is_refused_with_the_remedy():
    model = dataclasses.replace(load("InternVL3-8B"), template="internlm2-chat")
    with pytest.raises(ConfigError, match=mentions("internlm2-chat", "qwen2", "--chat-template")):
        choose_profile(model)


@pytest.mark.parametrize("name", ["internvl-internlm2", "internvl2-internlm2"])
def test_a_sentence_of_the_checkpoints_own_ends_the_doubt(caplog, name):
    model = dataclasses.replace(load("InternVL2-26B"), system_message=PROFILES[name].meta_instruction)
    assert choose_profile(model).name == name
    assert not caplog.records


def test_a_json_template_keeps_the_checkpoints_sentence_unless_it_has_its_own(tmp_path):
    model = dataclasses.replace(load("InternVL3-8B"), system_message="The checkpoint's.")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"base": "internvl2_5", "after_image": " "}))
    assert choose_profile(model, ChatTemplateConfig(str(path))).meta_instruction == "The checkpoint's."
    path.write_text(json.dumps({"base": "internvl2_5", "meta_instruction": "Mine."}))
    assert choose_profile(model, ChatTemplateConfig(str(path))).meta_instruction == "Mine."


def test_a_json_template_without_a_base_changes_the_checkpoints_own_profile(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"after_image": " "}))
    chosen = choose_profile(load("InternVL3-8B"), ChatTemplateConfig(str(path)))
    assert chosen == dataclasses.replace(PROFILES["internvl2_5"], name="own", after_image=" ")


def test_tools_of_the_users_own_are_refused_where_the_tokenizer_lacks_them_and_built_in_ones_go(tmp_path):
    names = {"<|im_start|>", "<|im_end|>", "<img>", "</img>"}
    built_in = fit_profile(PROFILES["internvl-internlm2"], names)
    assert (built_in.tools, built_in.stop_words) == ("", ("<|im_end|>",))
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"tools": "<|plugin|>", "stop_words": ["</s>"]}))
    own = choose_profile(load("InternVL3-8B"), ChatTemplateConfig(str(path)))
    with pytest.raises(ConfigError, match="tools"):
        fit_profile(own, names)
    path.write_text(json.dumps({"stop_words": ["</s>"]}))
    own = choose_profile(load("InternVL3-8B"), ChatTemplateConfig(str(path)))
    assert fit_profile(own, names).stop_words == ("</s>",)


def test_a_json_template_for_a_checkpoint_without_a_profile_needs_a_base(tmp_path):
    model = dataclasses.replace(load("InternVL3-8B"), template="phi3-chat")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"user": "U:"}))
    with pytest.raises(ConfigError, match="base"):
        choose_profile(model, ChatTemplateConfig(str(path)))
    path.write_text(json.dumps({"base": "internvl2_5", "user": "U:"}))
    assert choose_profile(model, ChatTemplateConfig(str(path))).user == "U:"


def test_a_json_template_cannot_say_which_fields_are_the_users(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"user_fields": "tools"}))
    with pytest.raises(ConfigError, match="unknown key 'user_fields'"):
        choose_profile(load("InternVL3-8B"), ChatTemplateConfig(str(path)))


@pytest.mark.parametrize("field", ["image_label", "between_images"])
def test_special_tokens_around_several_pictures_are_needed_too(field):
    names = {"<|im_start|>", "<|im_end|>", "<img>", "</img>"}
    profile = dataclasses.replace(PROFILES["internvl2_5"], **{field: "<|sep|>"})
    with pytest.raises(CheckpointError, match=re.escape("<|sep|>")):
        check_profile(profile, names)
    check_profile(profile, {*names, "<|sep|>"})
