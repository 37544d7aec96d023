"""Forms are refused by name or held to; whatever is sent, an answer comes and the process lives."""

import json
import random
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.inputs.text.forms import PERSON, SCHEMAS, is_valid, schema_format
from tests.messages import mentions
from tilewise import demo
from tilewise.errors import CapacityError, EngineError, InputError
from tilewise.inputs.text.grammar import TOO_COSTLY, Guide, check_format, create_guide, find_fault
from tilewise.inputs.text.tokenizer import Tokenizer, load_tokenizer
from tilewise.types import GenerationConfig


@pytest.fixture(scope="module", params=["demo", "internlm2", "qwen"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folders: Mapping[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders[request.param])


@pytest.fixture(scope="module")
def demo_tokenizer() -> Tokenizer:
    return load_tokenizer(demo.model_folder())


def start(given: object, tokenizer: Tokenizer) -> Guide:
    generation = GenerationConfig(response_format=given)  # type: ignore[arg-type]
    check_format(generation)
    assert generation.response_format is not None
    return create_guide(generation.response_format, tokenizer)


def allowed(guide: Guide, tokenizer: Tokenizer, stops=(), banned=(), *, is_short: bool = False) -> set[int]:
    mask = np.zeros(-(-tokenizer.vocab_size // 8), dtype=np.uint8)
    guide.fill(mask, stops, banned, is_short=is_short)
    return set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())


def write(guide: Guide, tokenizer: Tokenizer, text: str) -> bool:
    """Whether the form takes the text and may end after it."""
    stop = tokenizer.special_id("<|im_end|>")
    for token_id in tokenizer.encode(text):
        if token_id not in allowed(guide, tokenizer, [stop]):
            return False
        guide.consume(token_id)
    return stop in allowed(guide, tokenizer, [stop])


def wander(guide: Guide, tokenizer: Tokenizer, seed: int) -> str:
    """The text of random allowed tokens, to the stop token."""
    draw, stop, ids = random.Random(seed), tokenizer.special_id("<|im_end|>"), list[int]()
    while True:
        token_id = draw.choice(sorted(allowed(guide, tokenizer, [stop])))
        if token_id == stop:
            return tokenizer.decode(ids, skip_special_tokens=False)
        assert token_id not in tokenizer.reserved_ids
        guide.consume(token_id)
        ids.append(token_id)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_random_tokens_under_a_schema_make_valid_json(tokenizer: Tokenizer, schema: dict) -> None:
    values = []
    for seed in range(8):
        values.append(json.loads(wander(start(schema_format(schema), tokenizer), tokenizer, seed)))
        assert is_valid(values[-1], schema), values[-1]
    assert len({json.dumps(value) for value in values}) > 1


def test_the_judge_tells_right_from_wrong() -> None:
    good = {"name": "x", "age": 3, "kind": None, "tags": ["ab"], "is_good": True}
    assert is_valid(good, PERSON)
    for wrong in ({"age": 121}, {"name": "toolong"}, {"kind": "犬 "}, {"tags": []}, {"tags": ["A"]}, {"is_good": 1}):
        assert not is_valid({**good, **wrong}, PERSON)
    assert not is_valid({**good, "more": 1}, PERSON)


CHOICES = ["a", "ab", "第二", 'q"\\', "a\nb", "\u0001", "\x7f", "😀", "/x/i", "<|im_end|>", "<[3]>", "{}", "\u2028"]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_taken_letter_by_letter_and_nothing_else_is(tokenizer: Tokenizer, choice: str) -> None:
    form = {"type": "choice", "choice": CHOICES}
    assert write(start(form, tokenizer), tokenizer, choice)
    assert not write(start(form, tokenizer), tokenizer, choice + "zz")
    assert wander(start({"type": "choice", "choice": [choice]}, tokenizer), tokenizer, 0) == choice


@pytest.mark.parametrize(
    ("regex", "text", "other"),
    [
        (r"\d{4}-\d\d", "2026-11", "2026-1"),
        ("a/b", "a/b", "a"),
        (r"a\/b", "a/b", r"a\/b"),
        ("a\nb", "a\nb", "ab"),
        ("a\\\nb", "a\nb", "ab"),
        (r"\\/", "\\/", "/"),
        (r'["\\]+', '"\\', "'"),
        ("是|否", "否", "不"),
        ("# // %json", "# // %json", "#"),
        ("(a+)+", "aaaa", "ab"),
    ],
)
def test_a_regex_means_itself(tokenizer: Tokenizer, regex: str, text: str, other: str) -> None:
    form = {"type": "regex", "regex": regex}
    assert write(start(form, tokenizer), tokenizer, text)
    assert not write(start(form, tokenizer), tokenizer, other)


DECOMPOSED = "cafe\u0301 a"
DECOMPOSED_FORMS = [
    ({"type": "choice", "choice": [DECOMPOSED]}, DECOMPOSED),
    ({"type": "choice", "choice": ["\u212b\u0958\ufb2a"]}, "\u212b\u0958\ufb2a"),
    ({"type": "regex", "regex": DECOMPOSED}, DECOMPOSED),
    (schema_format({"enum": [DECOMPOSED]}), f'"{DECOMPOSED}"'),
    (
        schema_format(
            {
                "type": "object",
                "properties": {DECOMPOSED: {"const": 1}},
                "required": [DECOMPOSED],
                "additionalProperties": False,
            }
        ),
        {DECOMPOSED: 1},
    ),
]


@pytest.mark.parametrize(("form", "answer"), DECOMPOSED_FORMS)
def test_a_text_that_normalising_changes_is_answered_as_it_was_asked_for(
    tokenizer: Tokenizer, form: dict, answer: str | dict
) -> None:
    text = wander(start(form, tokenizer), tokenizer, 0)
    assert (text if isinstance(answer, str) else json.loads(text)) == answer


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}]}', "{}", '{\n    "a": 1\n}'])
def test_json_object_takes_objects_only(tokenizer: Tokenizer, text: str) -> None:
    assert write(start({"type": "json_object"}, tokenizer), tokenizer, text)
    assert not write(start({"type": "json_object"}, tokenizer), tokenizer, f"[{text}]")
    assert not write(start({"type": "json_object"}, tokenizer), tokenizer, '{"a":' + " " * 40)


def test_a_stop_comes_where_the_answer_is_complete_and_nowhere_else(tokenizer: Tokenizer) -> None:
    stops = [tokenizer.special_id("<|im_start|>"), tokenizer.eos_id]
    guide = start({"type": "regex", "regex": "a|abc"}, tokenizer)
    (a, *_), (b, *_), (c, *_) = map(tokenizer.encode, "abc")
    assert allowed(guide, tokenizer, stops).isdisjoint(stops)
    guide.consume(a)
    assert {*stops, b} <= allowed(guide, tokenizer, stops)
    assert allowed(guide, tokenizer, stops, is_short=True).isdisjoint(stops)
    assert allowed(guide, tokenizer, stops, [stops[0]]).isdisjoint(stops[:1])
    guide.consume(b)
    assert allowed(guide, tokenizer, stops).isdisjoint(stops)
    guide.consume(c)
    assert allowed(guide, tokenizer, stops) == allowed(guide, tokenizer, stops, is_short=True) == set(stops)
    with pytest.raises(EngineError, match=mentions("response_format", "bad_words")):
        allowed(guide, tokenizer, stops, stops)
    with pytest.raises(EngineError, match=mentions("response_format")):
        guide.consume(c)


def test_a_guide_starts_anew_each_time_it_is_created(demo_tokenizer: Tokenizer) -> None:
    form = {"type": "choice", "choice": ["ab"]}
    assert write(start(form, demo_tokenizer), demo_tokenizer, "ab")
    assert write(start(form, demo_tokenizer), demo_tokenizer, "ab")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        *(
            ({keyword: {}}, keyword)
            for keyword in ("not", "if", "then", "contains", "propertyNames", "dependentSchemas")
        ),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"unevaluatedProperties": False}}}, "unevaluatedProperties"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"type": "strng"}, "strng"),
        ({"type": "string", "format": "colour"}, "colour"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "#/$defs/none"}, "none"),
        ({"type": "string", "pattern": "["}, "unclosed"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)
def test_what_a_schema_asks_in_vain_is_named(demo_tokenizer: Tokenizer, schema: dict, named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)) as refusal:
        start(schema_format(schema), demo_tokenizer)
    assert refusal.value.param == "response_format"
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("other", [{"ignore_eos": True}, {"stop_words": ["}"]}, {"stop_token_ids": [5]}])
def test_what_would_cut_an_answer_before_it_is_complete_is_refused(demo_tokenizer: Tokenizer, other: dict) -> None:
    generation = GenerationConfig(response_format={"type": "json_object"}, **other)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=mentions("response_format", *other)) as refusal:
        check_format(generation)
    assert refusal.value.param == "response_format"


def regex(text: str) -> dict:
    return {"type": "regex", "regex": text}


def nested(depth: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def multiples(*numbers: float) -> dict:
    return {"allOf": [{"type": "integer", "multipleOf": number} for number in numbers]}


def chained(keyword: str) -> dict:
    pair = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)}
    return {"$defs": {**pair, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}


def refer_twice(number: int) -> dict:
    """Two references to one definition, each with a keyword of its own, so that neither is compiled for both."""
    return {
        name: {"$ref": f"#/$defs/d{number}", keyword: 3}
        for name, keyword in (("a", "maxProperties"), ("b", "minProperties"))
    }


def options(depth: int) -> dict:
    inner = [options(depth - 1)] * 2 if depth else [{"type": "object"}]
    return {"anyOf": inner, "properties": {f"n{depth}": {}}}


HOSTILE = {
    # Source: the inputs of CVE-2025-48942, CVE-2025-48943 and CVE-2025-48944.
    "a type that is none": schema_format({"type": "object", "properties": {"a": {"type": "stringx"}}}),
    "a pattern that is none": schema_format({"type": "object", "properties": {"a": {"pattern": "("}}}),
    "a regex that is none": regex("["),
    "a type that is a number": schema_format({"type": 1, "properties": []}),
    "nested quantifiers": regex("((a+)+)+((a*)*)*$"),
    "nested counts": regex("((a{1000}){1000}){1000}"),
    "counts of classes": regex(r"(\p{L}{0,500}\w{0,500}){0,50}"),
    "an automaton of 2^25 states": regex("(a|b)*a(a|b){25}"),
    "parentheses": regex("(" * 30_000 + ")" * 30_000),
    "words": regex("|".join(f"w{n}" for n in range(8_000))),
    "alternatives": regex("(a|b.c)*d{3,7}|" * 4_000 + "x"),
    "choices": {"type": "choice", "choice": [f"w{n}" for n in range(7_000)]},
    "enum": schema_format({"enum": [f"w{n}" for n in range(7_000)]}),
    "enum of prefixes": schema_format({"enum": ["a" * n for n in range(340)]}),
    "properties": schema_format({"type": "object", "properties": {f"p{n}": {} for n in range(5_000)}}),
    "depth": schema_format(nested(60)),
    "more depth": schema_format(nested(200)),
    "itself": schema_format({"$ref": "#"}),
    "itself twice": schema_format({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
    "all of all": schema_format(chained("allOf")),
    "any of any": schema_format(chained("anyOf")),
    "products": schema_format(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(8)]} for i in range(8)]}
    ),
    "references": schema_format(
        {
            "$defs": {
                **{f"d{n}": {"type": "object", "properties": refer_twice(n + 1)} for n in range(24)},
                "d24": {"type": "object"},
            },
            "$ref": "#/$defs/d0",
        }
    ),
    "options inside options": schema_format({**options(5), "properties": {f"p{n}": {} for n in range(250)}}),
    "multiples": schema_format(multiples(9973, 9967, 9949, 9941)),
    "a multiple": schema_format({"type": "integer", "multipleOf": 999_999_937}),
    "small multiples": schema_format({"type": "number", "multipleOf": 1e-300}),
    "bounds": schema_format({"type": "integer", "minimum": -(10**300), "maximum": 10**300}),
    "lengths": schema_format({"type": "string", "minLength": 10**5, "maxLength": 10**7}),
    "items": schema_format({"type": "array", "items": {"type": "string"}, "minItems": 10**6}),
    "pattern properties": schema_format({"patternProperties": {f".*{n}.{{10}}$": {} for n in range(100)}}),
    "patterns": schema_format(
        {"type": "object", "properties": {f"p{n}": {"pattern": f"^(.*{n}.{{100}})+$"} for n in range(300)}}
    ),
}


def try_form(form: dict, tokenizer: Tokenizer) -> Exception | None:
    """Up to 50 random tokens of an answer; the error that came instead."""
    stop, draw = tokenizer.special_id("<|im_end|>"), random.Random(0)
    try:
        guide = start(form, tokenizer)
        for _ in range(50):
            token_id = draw.choice(sorted(allowed(guide, tokenizer, [stop])))
            if token_id == stop:
                return None
            guide.consume(token_id)
    except (InputError, EngineError) as error:
        return error
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_form_ends_in_an_answer_or_an_error(demo_tokenizer: Tokenizer, name: str) -> None:
    error = str(try_form(HOSTILE[name], demo_tokenizer))
    assert len(error) < 300
    assert not re.search(r"0x|<state>|backtrace", error)
    assert write(start({"type": "choice", "choice": ["ab"]}, demo_tokenizer), demo_tokenizer, "ab")


@pytest.mark.parametrize("name", ["multiples", "references"])
def test_what_keeps_the_compiler_busy_for_minutes_is_killed(demo_tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(InputError, match=re.escape(TOO_COSTLY)):
        start(HOSTILE[name], demo_tokenizer)


def test_a_form_is_checked_in_another_process_unless_it_is_plain(
    demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    find_fault.cache_clear()
    start(schema_format(SCHEMAS[3]), demo_tokenizer)
    costly = ("a pattern that is none", "multiples", "properties", "references", "options inside options", "itself")
    for form in (regex("a"), *(HOSTILE[name] for name in costly), schema_format(SCHEMAS[1])):
        with pytest.raises(pytest.fail.Exception):
            start(form, demo_tokenizer)


def fail_to_start(*_: object, **__: object) -> None:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def run_out_of_time(command: list[str], **_: object) -> None:
    raise subprocess.TimeoutExpired(command, 5.0)


def end_with(status: int) -> Callable[..., object]:
    return lambda command, **_: subprocess.CompletedProcess(command, status, b"", b"")


@pytest.mark.parametrize("run", [fail_to_start, run_out_of_time, end_with(1), end_with(-signal.SIGKILL)])
def test_a_form_that_a_busy_machine_could_not_check_may_come_again(
    demo_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]
) -> None:
    find_fault.cache_clear()
    with monkeypatch.context() as busy:
        busy.setattr(subprocess, "run", run)
        with pytest.raises(CapacityError, match="too busy") as refusal:
            start(regex("[a-z]{3}"), demo_tokenizer)
    assert refusal.value.param == "response_format"
    assert write(start(regex("[a-z]{3}"), demo_tokenizer), demo_tokenizer, "abc")
