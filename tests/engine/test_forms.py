"""Random models under a form: what they say is valid, whatever happens to them on the way."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.engine.tiny import BLOCK_SIZE, KV_BLOCK_BYTES, MODEL, TILE_BYTES, make_request, run
from tests.inputs.text.forms import PERSON, SCHEMAS, is_valid, schema_format
from tilewise import demo
from tilewise.config import EngineConfig
from tilewise.engine.core import EngineCore, build_core
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.types import FinishReason, GenerationConfig, Request, StepOutput

LONG = 450  # white space between values is bounded too, and a greedy model may like it


def make_core(folder: Path, seed: int = 0, *, num_blocks: int = 400, **options: object) -> EngineCore:
    """A tiny random model over a whole vocabulary."""
    decoder = replace(MODEL.decoder, vocab_size=load_tokenizer(folder).vocab_size + 3)
    given = {
        "device": "cpu",
        "load_format": "dummy",
        "cache_block_seq_len": BLOCK_SIZE,
        "kv_cache_bytes": num_blocks * KV_BLOCK_BYTES,
        "image_cache_bytes": TILE_BYTES,
        **options,
    }
    torch.set_num_threads(1)
    core, _ = build_core(folder, replace(MODEL, decoder=decoder), EngineConfig.from_options(given))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in core.runner.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    return core


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo.model_folder())


def ask(tokenizer: Tokenizer, request_id: str, given: object, **more: object) -> Request:
    number = int(request_id[1:])
    generation = GenerationConfig(
        **{
            "max_new_tokens": LONG,
            "do_sample": True,
            "top_k": 0,
            "random_seed": number,
            "response_format": given,
            **more,
        }
    )
    stops = (tokenizer.special_id("<|im_end|>"), tokenizer.eos_id)
    return make_request(request_id, [tokenizer.encode(f"question {number}")], generation, stops)


def read(outputs: Sequence[StepOutput], tokenizer: Tokenizer) -> str:
    """The text of an answer that ended with a stop token."""
    ids = [token_id for output in outputs for token_id in output.token_ids]
    assert outputs[-1].finish_reason is FinishReason.STOP, outputs[-1]
    assert ids[-1] in tokenizer.special_ids
    assert tokenizer.special_ids.isdisjoint(ids[:-1])
    return tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_any_random_model_says_valid_json_under_a_schema(tokenizer: Tokenizer, temperature: float) -> None:
    for seed in range(3):
        core = make_core(demo.model_folder(), seed)
        requests = [
            ask(tokenizer, f"r{number}", schema_format(schema), temperature=temperature)
            for number, schema in enumerate(SCHEMAS * 2)
        ]
        heard = run(core, requests)
        for number, schema in enumerate(SCHEMAS * 2):
            assert is_valid(json.loads(read(heard[f"r{number}"], tokenizer)), schema)


@pytest.mark.parametrize("kind", ["internlm2", "qwen"])
def test_a_form_holds_over_each_kind_of_tokenizer(tokenizer_folders: Mapping[str, Path], kind: str) -> None:
    folder = tokenizer_folders[kind]
    tokenizer, core = load_tokenizer(folder), make_core(folder)
    heard = run(core, [ask(tokenizer, f"r{number}", schema_format(PERSON)) for number in range(4)])
    texts = {read(outputs, tokenizer) for outputs in heard.values()}
    assert len(texts) > 1
    assert all(is_valid(json.loads(text), PERSON) for text in texts)


def tokens(heard: dict[str, list[StepOutput]]) -> dict[str, list[int]]:
    return {name: [token_id for output in outputs for token_id in output.token_ids] for name, outputs in heard.items()}


def test_preemption_company_and_chunks_change_no_answer(tokenizer: Tokenizer) -> None:
    forms = [schema_format(PERSON), None, {"type": "choice", "choice": ["one", "two"]}, schema_format(SCHEMAS[2])]
    requests = [ask(tokenizer, f"r{number}", forms[number % 4], max_new_tokens=60) for number in range(24)]
    folder = demo.model_folder()
    alone: dict[str, list[int]] = {}
    core = make_core(folder, max_batch_size=1)
    for request in requests:
        alone |= tokens(run(core, [request]))
    crowded = make_core(folder, num_blocks=14, session_len=7 * BLOCK_SIZE, max_batch_size=16)
    assert tokens(run(crowded, requests)) == alone
    assert crowded.scheduler.counters["preemptions"] > 0
    assert tokens(run(make_core(folder, max_prefill_token_num=24, max_batch_size=24), requests[::-1])) == alone


def test_an_answer_that_is_cut_ends_with_length(tokenizer: Tokenizer) -> None:
    heard = run(make_core(demo.model_folder()), [ask(tokenizer, "r0", schema_format(PERSON), max_new_tokens=5)])["r0"]
    assert heard[-1].finish_reason is FinishReason.LENGTH
    assert sum(len(output.token_ids) for output in heard) == 5


def test_the_fewest_new_tokens_hold_where_the_form_has_more_to_say(tokenizer: Tokenizer) -> None:
    core = make_core(demo.model_folder())
    more = {"min_new_tokens": 12}
    requests = [ask(tokenizer, f"r{number}", {"type": "regex", "regex": "[ab]+"}, **more) for number in range(8)]
    requests.append(ask(tokenizer, "r8", {"type": "choice", "choice": ["ab"]}, **more))
    heard = run(core, requests)
    for number in range(8):
        assert sum(len(output.token_ids) for output in heard[f"r{number}"]) > 12
    assert read(heard["r8"], tokenizer) == "ab"


def test_bad_words_biases_and_penalties_choose_within_the_form(tokenizer: Tokenizer) -> None:
    core = make_core(demo.model_folder())
    form = {"type": "regex", "regex": "[abc]{6}"}
    ids = {
        letter: [i for i in range(tokenizer.vocab_size) if letter in tokenizer.token_bytes(i)]
        for letter in (b"a", b"b")
    }
    likely = [(i, 100.0) for i in range(0, tokenizer.vocab_size, 7)]
    requests = [
        ask(tokenizer, "r0", form, bad_token_ids=ids[b"a"]),
        ask(tokenizer, "r1", form, bad_token_ids=ids[b"a"] + ids[b"b"], repetition_penalty=9.0, presence_penalty=2.0),
        ask(tokenizer, "r2", form, logit_bias=likely, frequency_penalty=-2.0, do_sample=False),
    ]
    heard = run(core, requests)
    assert "a" not in read(heard["r0"], tokenizer)
    assert read(heard["r1"], tokenizer) == "cccccc"
    assert set(read(heard["r2"], tokenizer)) <= set("abc")


def test_a_form_that_fails_fails_its_request_alone(tokenizer: Tokenizer) -> None:
    core = make_core(demo.model_folder())
    vowels = [i for i in range(tokenizer.vocab_size) if b"a" in tokenizer.token_bytes(i)]
    requests = [
        ask(tokenizer, "r0", schema_format(PERSON)),
        ask(tokenizer, "r1", {"type": "regex", "regex": "("}),
        ask(tokenizer, "r2", {"type": "choice", "choice": ["a"]}, bad_token_ids=vowels),
        ask(tokenizer, "r3", {"type": "regex", "regex": r"(\p{L}{0,500}\w{0,500}){0,50}"}),
        ask(tokenizer, "r4", '{"type":"tool_calls"}'),
        ask(tokenizer, "r5", None, max_new_tokens=30, do_sample=False),
    ]
    heard = run(core, requests)
    assert is_valid(json.loads(read(heard["r0"], tokenizer)), PERSON)
    for name, said in {"r1": "unclosed group", "r2": "No token may come", "r3": "too many", "r4": "could not"}.items():
        assert heard[name][-1].finish_reason is FinishReason.ERROR
        assert said in (heard[name][-1].error or "")
        assert not heard[name][-1].token_ids
    assert tokens(heard)["r5"] == tokens(run(make_core(demo.model_folder()), [requests[5]]))["r5"]
    assert core.scheduler.counters["requests_opened"] == core.scheduler.counters["requests_ended"] == 6


def test_logprobs_under_a_form_are_those_of_what_it_allows(tokenizer: Tokenizer) -> None:
    request = ask(tokenizer, "r0", {"type": "choice", "choice": ["ab", "cd"]}, logprobs=20)
    for output in run(make_core(demo.model_folder()), [request])["r0"]:
        (logprob,) = output.logprobs
        assert all(math.isfinite(value) for _, value in logprob.top)
        assert logprob.token_id in dict(logprob.top)
        assert math.isclose(sum(math.exp(value) for _, value in logprob.top), 1.0, rel_tol=1e-4)
