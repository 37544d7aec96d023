"""Forms through `pipeline()`, over the embedded model."""

import json

import pytest

from tests.inputs.text.forms import PERSON, is_valid, schema_format
from tilewise import GenerationConfig, demo, pipeline
from tilewise.errors import InputError
from tilewise.inputs.text.tokenizer import load_tokenizer


def test_a_pipelines_answers_have_the_form_that_was_asked_for() -> None:
    tokenizer = load_tokenizer(demo.model_folder())
    sampled = {"do_sample": True, "temperature": 5.0, "top_k": 0, "max_new_tokens": 400}
    with pipeline(log_level="ERROR") as pipe:
        twice = pipe("q", GenerationConfig(n=2, response_format=schema_format(PERSON), **sampled))  # type: ignore[arg-type]
        chosen = pipe(["q", "r"], GenerationConfig(response_format={"type": "choice", "choice": ["是", "no"]}))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="uniqueItems"):
            pipe("q", GenerationConfig(response_format=schema_format({"uniqueItems": True})))  # type: ignore[arg-type]
    assert [response.finish_reason for response in (*twice, *chosen)] == ["stop"] * 4
    assert all(is_valid(json.loads(tokenizer.decode(response.token_ids)), PERSON) for response in twice)
    assert all(tokenizer.decode(response.token_ids) in ("是", "no") for response in chosen)
