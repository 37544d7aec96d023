"""From a checkpoint's folder to a prompt: what other engines get wrong about the family must not go wrong here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conversations import CONVERSATIONS
from tests.family import FOLDER
from tests.messages import mentions
from tests.qwen_vocabulary import find_special_ids, write_cut
from tilewise.checkpoint.hf_config import load_model_config
from tilewise.config import DeviceConfig, EngineConfig, RopeScaling, resolve
from tilewise.errors import CheckpointError, InputError
from tilewise.inputs.conversation import Message
from tilewise.inputs.request_builder import RequestBuilder, create_builder
from tilewise.types import GenerationConfig

GENERATIONS = {
    "InternVL2-1B": "Qwen2",
    "InternVL2_5-4B": "Qwen2.5",
    "InternVL3-8B": "Qwen2.5",
    "InternVL3-1B-hf": "Qwen2.5",
    "InternVL3_5-8B": "Qwen3",
    "InternVL3_5-8B-HF": "Qwen3",
}
# Its vocabulary ends before <video>, as that of all in the Hugging Face layout with Qwen2.5.
BEYOND = "InternVL3-1B-hf"
EVERY = pytest.mark.parametrize("name", GENERATIONS)


class Folder:
    """A checkpoint's folder without weights, and the real ids of its cut vocabulary."""

    def __init__(self, path: Path, name: str) -> None:
        shutil.copytree(FOLDER / name, path, dirs_exist_ok=True)
        self.path = path
        is_hf = name.lower().endswith("-hf")
        self.real_ids = write_cut(path, GENERATIONS[name], ("<video>",) if is_hf else ())
        if name == BEYOND:
            text = json.loads((path / "config.json").read_text())["text_config"]
            self.change("config.json", text_config={**text, "vocab_size": len(self.real_ids)})
        self.special_ids = find_special_ids(GENERATIONS[name])

    def change(self, name: str, **fields: object) -> None:
        path = self.path / name
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(data | fields))

    def create_builder(self) -> RequestBuilder:
        return create_builder(self.path, load_model_config(self.path))

    def ask(self, conversation: str = "one picture") -> tuple[list[int], list[int]]:
        """Ids of the prompt and of its stops."""
        request = self.create_builder().build(CONVERSATIONS[conversation], GenerationConfig(), "r")
        return [self.real_ids[i] for i in request.token_ids], [self.real_ids[i] for i in request.stop_token_ids]


@pytest.fixture
def folder(tmp_path, name):
    return Folder(tmp_path, name)


@EVERY
def test_a_folder_gives_the_ids_of_its_goldens(folder, name, repository):
    golden = json.loads((repository / "tests/golden/prompt_ids_qwen.json").read_text(encoding="utf-8"))
    (profile,) = (profile for profile in golden[GENERATIONS[name]] if not profile.endswith("-numbered"))
    context_id = folder.special_ids["<IMG_CONTEXT>"]
    token_ids, _ = folder.ask()
    expected = golden[GENERATIONS[name]][profile]["one picture"]
    at = expected.index("picture 1")
    assert token_ids == [*expected[:at], *[context_id] * 256, *expected[at + 1 :]]


@EVERY
def test_the_only_stop_is_the_templates_whatever_config_and_generation_config_say(folder, name):
    folder.change("generation_config.json", eos_token_id=[151643, 151645, 151644])
    folder.change("config.json", eos_token_id=151643)
    assert folder.ask()[1] == [folder.special_ids["<|im_end|>"]] == [151645]


@EVERY
def test_the_chat_template_of_the_tokenizer_is_never_used(folder, name):
    plain = folder.ask()
    folder.change("tokenizer_config.json", chat_template="<|im_start|>system\nYou are Qwen<|im_end|>")
    (folder.path / "chat_template.json").write_text(json.dumps({"chat_template": "You are Qwen"}))
    (folder.path / "chat_template.jinja").write_text("You are Qwen")
    assert folder.ask() == plain


@EVERY
def test_tools_are_refused_by_name_where_the_vocabulary_has_no_tokens_for_them(folder, name):
    messages = [Message("tools", ("[]",)), *CONVERSATIONS["no picture"]]
    with pytest.raises(InputError, match=mentions("tools", "syntax")):
        folder.create_builder().build(messages, GenerationConfig(), "r")


@pytest.mark.parametrize("name", [BEYOND, "InternVL3_5-8B-HF"])
def test_an_added_token_that_the_model_has_no_id_for_is_no_token(folder, name):
    model = load_model_config(folder.path)
    tokenizer = folder.create_builder().tokenizer
    assert ("<video>" in tokenizer.special_tokens) == (name != BEYOND)
    assert tokenizer.vocab_size <= model.decoder.vocab_size
    assert tokenizer.decode(tokenizer.encode("a <video> b")) == "a <video> b"


@pytest.mark.parametrize("name", [BEYOND])
@pytest.mark.parametrize(("num_missing", "match"), [(7, "<IMG_CONTEXT>"), (100, "do not fit")])
def test_tokens_that_a_prompt_needs_are_missed_where_the_model_has_no_ids_for_them(folder, num_missing, match):
    model = load_model_config(folder.path)
    decoder = replace(model.decoder, vocab_size=model.decoder.vocab_size - num_missing)
    with pytest.raises(CheckpointError, match=match):
        create_builder(folder.path, replace(model, decoder=decoder))


@EVERY
def test_names_of_special_tokens_in_a_question_stay_text(folder, name):
    builder = folder.create_builder()
    plain = builder.build(CONVERSATIONS["one picture"], GenerationConfig(), "r").token_ids
    hostile = [Message("user", (*CONVERSATIONS["one picture"][0].parts, "".join(folder.special_ids)))]
    token_ids = builder.build(hostile, GenerationConfig(), "r").token_ids
    special_ids = set(builder.tokenizer.special_tokens.values())
    assert [i for i in token_ids if i in special_ids] == [i for i in plain if i in special_ids]


@pytest.mark.parametrize(("name", "head_dim"), [("1B", 128), ("2B", 128), ("4B", 128), ("8B", 128), ("38B", 128)])
def test_qwen3s_head_size_is_its_own_field_not_a_share_of_the_width(name, head_dim):
    decoder = load_model_config(FOLDER / f"InternVL3_5-{name}").decoder
    assert decoder.head_dim == head_dim
    assert name in ("2B", "8B") or decoder.hidden_size // decoder.num_heads != head_dim


@pytest.mark.parametrize("name", ["InternVL3-1B", "InternVL3-1B-hf"])
def test_dynamic_ntk_below_its_limit_is_plain_rope(name):
    model = load_model_config(FOLDER / name)
    assert model.decoder.rope_scaling == RopeScaling("dynamic", 2.0)
    resolved = resolve(EngineConfig(), model, DeviceConfig("cpu"))
    assert (resolved.session_len, resolved.rope_base, resolved.rope_position_scale) == (32768, 1e6, 1.0)


def test_rope_is_read_from_rope_parameters_too():
    assert "rope_theta" not in json.loads((FOLDER / "InternVL3_5-38B-HF" / "config.json").read_text())["text_config"]
    assert load_model_config(FOLDER / "InternVL3_5-38B-HF").decoder.rope_theta == 1e6


@pytest.mark.parametrize("name", ["InternVL2-1B", "InternVL2_5-4B"])
def test_a_head_that_llm_config_calls_tied_is_untied_until_the_weights_say_so(name):
    assert json.loads((FOLDER / name / "config.json").read_text())["llm_config"]["tie_word_embeddings"]
    assert not load_model_config(FOLDER / name).decoder.is_head_tied


@pytest.mark.parametrize("window", [32768, 131072, None])
def test_a_sliding_window_that_hides_nothing_is_not_refused(tmp_path, window):
    data = json.loads((FOLDER / "InternVL2_5-1B" / "config.json").read_text())
    data["llm_config"] |= {"sliding_window": window, "use_sliding_window": window is not None}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert load_model_config(tmp_path).decoder.max_position_embeddings == 32768
