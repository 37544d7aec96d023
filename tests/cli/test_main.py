import io
import json
import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.scripted import MakePipeline, say
from tilewise.checkpoint.hf_config import SERVED, load_model_config
from tilewise.cli import commands
from tilewise.cli import main as cli
from tilewise.cli.flags import ENGINE_HELP, GENERATION_HELP, given_flags
from tilewise.config import EngineConfig
from tilewise.demo import model_folder, picture_path
from tilewise.errors import UnsupportedModelError
from tilewise.inputs.text.profiles import PROFILES
from tilewise.inputs.text.tokenizer import Tokenizer
from tilewise.offline.pipeline import Pipeline
from tilewise.types import FinishReason, GenerationConfig, Request, StepOutput, TokenLogprob


class Asked(list[Any]):
    """What the model was created with, then the requests; each is answered with "a dog"."""

    def __init__(self, make_pipeline: MakePipeline, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._make_pipeline, self._tokenizer = make_pipeline, tokenizer

    def create_pipeline(self, *arguments: Any, **pictures: Any) -> Pipeline:
        self.append((*arguments, pictures))
        return self._make_pipeline(self._answer)[0]

    def _answer(self, request: Request) -> Any:
        self.append(request)
        return say(self._tokenizer.encode("a dog"), FinishReason.STOP, self._tokenizer.special_id("<|im_end|>"))


@pytest.fixture
def asked(make_pipeline: MakePipeline, tokenizer: Tokenizer) -> Asked:
    return Asked(make_pipeline, tokenizer)


def test_every_engine_option_has_a_flag() -> None:
    assert set(ENGINE_HELP) == {field.name for field in fields(EngineConfig)}


def test_every_generation_option_but_the_bias_table_has_a_flag() -> None:
    assert set(GENERATION_HELP) == {field.name for field in fields(GenerationConfig)} - {"logit_bias"}


def test_flags_keep_types_and_only_what_was_given() -> None:
    line = (
        "generate --session-len 8 --cache-max-entry-count 0.5 --no-enable-prefix-caching --load-format dummy "
        "--stop-words a --stop-words b --stop-token-ids 7 --do-sample --random-seed 3"
    )
    args = cli.create_parser().parse_args(line.split())
    assert given_flags(args, ENGINE_HELP) == {
        "session_len": 8,
        "cache_max_entry_count": 0.5,
        "enable_prefix_caching": False,
        "load_format": "dummy",
    }
    assert given_flags(args, GENERATION_HELP) == {
        "stop_words": ["a", "b"],
        "stop_token_ids": [7],
        "do_sample": True,
        "random_seed": 3,
    }


def test_generate_prints_the_text_and_the_counts_apart(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["generate", "--prompt", "what is it?", "--image", str(picture_path()), "--session-len", "4096"],
            asked.create_pipeline,
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "a dog\n"
    arguments, request = asked
    assert re.match(rf"{len(request.token_ids)} tokens in, \d+ out \(stop\); loaded in .* s, answered in .* s\n", err)
    assert arguments[2].session_len == 4096


def test_generate_streams_the_same_text(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "--prompt", "what?", "--stream"], asked.create_pipeline) == 0
    assert capsys.readouterr().out == "a dog\n"
    assert not asked[1].images


def test_picture_flags_reach_the_pipeline(asked: Asked) -> None:
    flags = "--max-dynamic-patch 4 --min-dynamic-patch 2 --allowed-media-hosts a.lan --allowed-media-hosts b.lan"
    assert cli.main(["generate", "--prompt", "what?", *flags.split()], asked.create_pipeline) == 0
    assert asked[0][-1] == {
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 2,
        "allowed_media_hosts": ["a.lan", "b.lan"],
    }


def test_a_logprob_that_is_not_finite_is_null_in_json(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logprobs = (TokenLogprob(5, -math.inf, ((5, math.nan), (6, -1.0))),)
    outputs = [StepOutput("", (5,), logprobs, finish_reason=FinishReason.LENGTH)]
    line = ["generate", "--prompt", "what?", "--json", "--logprobs", "2"]
    assert cli.main(line, lambda *_: make_pipeline(lambda _: outputs)[0]) == 0

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    said = json.loads(capsys.readouterr().out, parse_constant=refuse)
    (entry,) = said["answers"][0]["logprobs"]
    assert entry["logprob"] is None
    assert entry["top"] == [[5, None], [6, -1.0]]


def test_generate_in_json_is_one_object_with_the_response_s_fields(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["generate", "--prompt", "what?", "--json", "--n", "2", "--logprobs", "0"]
    assert cli.main(line, asked.create_pipeline) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert [answer["text"] for answer in said["answers"]] == ["a dog", "a dog"]
    assert said["answers"][0]["usage"]["prompt_tokens"] == len(asked[1].token_ids)
    assert said["answers"][0]["logprobs"]
    assert err == ""


def test_generate_with_nothing_shows_the_bundled_picture_s_response(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate"], asked.create_pipeline) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Response(text='a dog', generate_token_len=")
    assert str(picture_path()) in err
    assert commands.DEMO_QUESTION in err
    assert len(asked[1].images) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate --image x.png", "add --prompt"),
        ("generate --prompt a --stream --json", "exclude each other"),
        ("generate --prompt a --temperature 0.5", "--temperature: has no effect without sampling; add --do-sample"),
        ("generate --prompt a --no-do-sample --top-p 0.5", "--top-p: has no effect"),
        ("generate --prompt a --logprobs 3", "add --json"),
        ("generate --prompt a --n 2 --stream", "--stream shows one answer"),
        ("generate --prompt a --allowed-media-hosts http://a", "give a list of bare hosts"),
        ("generate --prompt a --max-new-tokens 0", "max_new_tokens must be a whole number"),
        ("generate --prompt a --tp 2", "leave tp=1"),
        ("generate --prompt a --image no-such.png", "There is no picture at 'no-such.png'"),
    ],
)
def test_what_would_not_be_honoured_is_refused_before_a_model_is_loaded(
    line: str, message: str, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split(), asked.create_pipeline) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not asked


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdout", Interrupted())
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "tilewise: interrupted\n"


def test_list_names_every_profile_and_what_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROFILES)
    assert all(name in out for row in SERVED for name in row)


def test_list_says_what_the_checkpoint_reader_says(tmp_path: Path) -> None:
    config = json.loads((model_folder() / "config.json").read_text())
    said: list[str] = []
    for part, key in ((config, "architectures"), (config["llm_config"], "architectures")):
        part[key], kept = ["SomethingElse"], part.get(key)
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError) as caught:
            load_model_config(tmp_path)
        part[key] = kept
        said += re.findall(r"\b\w+(?:ChatModel|ForCausalLM|ForConditionalGeneration)\b", str(caught.value))
    assert set(said) == {name for row in SERVED for name in row}


def test_download_of_a_local_folder_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["download", str(model_folder())]) == 0
    assert capsys.readouterr().out == f"{model_folder()}\n"


def test_check_env_shows_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check_env"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("tilewise", "torch", "pillow", "cores", "torch device"))
