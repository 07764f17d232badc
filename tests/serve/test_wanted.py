"""Answers that must have a form, answers of which a part is given, and texts with holes, through the openai client: what comes
is what the library gives."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import Server

from mmada_lite import Model, load
from mmada_lite.decoding.settings import TextSettings, with_changes

HELLO = [{"role": "user", "content": "hello"}]
SHORT = {"max_tokens": 24, "seed": 5}
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
needs_forms = pytest.mark.skipif(importlib.util.find_spec("outlines_core") is None, reason="needs the extra forms")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, device="cpu", threads=1)


def short(model: Model, **changes: Any) -> TextSettings:
    """The settings of SHORT."""
    return with_changes(model.text_defaults, {"answer_length": 24, **changes})


def form_of(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


@needs_forms
def test_a_schema_is_satisfied(client: openai.OpenAI, model: Model) -> None:
    given: Any = {"model": model.bundle.name, "messages": HELLO, "response_format": form_of(SCHEMA), **SHORT}
    expected = model.chat(HELLO, short(model), schema=SCHEMA, seed=5).result()
    whole = client.chat.completions.create(**given)
    assert whole.choices[0].message.content == expected.text.strip()
    assert isinstance(json.loads(expected.text)["on"], bool)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.spans[0].ids)
    parts = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**given, stream=True)]
    assert "".join(parts) == whole.choices[0].message.content


@needs_forms
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_pattern_is_matched(client: openai.OpenAI, model: Model, temperature: float) -> None:
    settings = short(model, temperature=temperature)
    expected = model.chat(HELLO, settings, pattern="[a-c]{3,9}", seed=5).result()
    extra = {"pattern": "[a-c]{3,9}"}
    whole = client.chat.completions.create(
        model=model.bundle.name, messages=HELLO, **SHORT, temperature=temperature, extra_body=extra
    )
    assert whole.choices[0].message.content == expected.text
    assert set(expected.text) <= set("abc")


def test_the_likeliest_choice_is_taken_and_each_ones_likelihood_told(client: openai.OpenAI, model: Model) -> None:
    expected = model.chat(HELLO, short(model), choices=["yes", "no", "both"]).result()
    whole = client.chat.completions.create(
        model=model.bundle.name, messages=HELLO, **SHORT, extra_body={"choices": ["yes", "no", "both"]}
    )
    assert whole.choices[0].message.content == expected.text
    told = [(each["text"], each["log_likelihood"]) for each in whole.model_extra["likelihoods"]]
    assert told == [(choice.text, pytest.approx(choice.log_likelihood)) for choice in expected.choices]


@pytest.mark.parametrize("answer", ["so it ", "it [mask:3] and [mask:2].", "a [mask:*3] z"])
def test_given_parts_of_an_answer_stay(client: openai.OpenAI, model: Model, answer: str) -> None:
    expected = model.chat(HELLO, short(model), answer=answer, seed=5).result()
    given: Any = {"model": model.bundle.name, "messages": HELLO, **SHORT, "extra_body": {"answer": answer}}
    whole = client.chat.completions.create(**given)
    assert whole.choices[0].message.content == expected.text.strip()
    assert [span["text"] for span in whole.model_extra["spans"]] == [span.text for span in expected.spans]
    said, spans = "", None
    for chunk in client.chat.completions.create(**given, stream=True):
        said += chunk.choices[0].delta.content or ""
        spans = chunk.model_extra.get("spans", spans)
    assert said == whole.choices[0].message.content
    assert spans == whole.model_extra["spans"]


@pytest.mark.parametrize("text", ["a [mask:3] b [mask:2]", "[mask:*3] end"])
def test_holes_of_a_text_are_filled(client: openai.OpenAI, model: Model, text: str) -> None:
    expected = model.fill(text, model.text_defaults.replace(temperature=0.8), seed=5).result()
    given: Any = {"model": model.bundle.name, "prompt": text, "seed": 5, "temperature": 0.8}
    whole = client.completions.create(**given)
    assert (whole.choices[0].text, whole.model_extra["seed"]) == (expected.text, 5)
    assert [span["text"] for span in whole.model_extra["spans"]] == [span.text for span in expected.spans]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == sum(len(span.ids) for span in expected.spans)
    usage = {"include_usage": True}
    chunks = list(client.completions.create(**given, stream=True, stream_options=usage, extra_body={"stream_mode": "denoise"}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected.text
    steps = [chunk.model_extra["denoise"] for chunk in chunks if "denoise" in chunk.model_extra]
    assert len(steps) == expected.steps
    assert "*" in text or steps[0]["text"].count("░") > steps[-1]["text"].count("░")  # of several lengths the first is shown
    assert chunks[-1].usage == whole.usage


@needs_forms
def test_a_hole_has_a_form(client: openai.OpenAI, model: Model) -> None:
    for form in ({"choices": ["cat", "dog"]}, {"pattern": "[0-9]{2}"}, {"response_format": form_of({"type": "integer"})}):
        whole = client.completions.create(model=model.bundle.name, prompt="it is [mask:4].", seed=5, extra_body=form)
        library = {"schema": {"type": "integer"}} if "response_format" in form else form
        assert whole.choices[0].text == model.fill("it is [mask:4].", seed=5, **library).result().text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("response_format", {"type": "json_object"}, "json_object"),
        ("response_format", {"type": "xml"}, "response_format is"),
        ("response_format", "json", "response_format is"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}, "response_format is"),
        ("response_format", form_of({"type": "object"}), "without 'properties'"),
        ("response_format", form_of({"type": "wrong"}), "use one of string"),
        ("response_format", form_of({"type": "string", "minLength": 500}), "takes"),
        ("choices", [], "send a list of texts"),
        ("choices", ["a", 3], "send a list of texts"),
        ("choices", ["a", "a"], "stands twice"),
        ("choices", ["a" * 100], "takes"),
        ("pattern", "(", "no regular expression"),
        ("pattern", 3, "send a regular expression"),
        ("answer", "", "send how the answer begins"),
        ("answer", "[mask:0]", "hole of 0 tokens"),
        ("answer", "[mask:1] x" * 9, "24"),
    ],
)
def test_a_form_that_cannot_be_is_refused_by_its_field(server: Server, field: str, value: Any, said: str) -> None:
    refused = server.post("/v1/chat/completions", {"messages": HELLO, **SHORT, field: value})
    assert refused.status == 400
    assert said in refused.said or "needs outlines-core" in refused.said
    assert refused.json["error"]["param"] == field


@pytest.mark.parametrize(("field", "value"), [("steps", 10**9), ("steps", "a"), ("temperature", -1), ("guidance", 1e9)])
def test_a_setting_that_cannot_be_is_refused_by_its_field(server: Server, field: str, value: Any) -> None:
    for path, body in (("/v1/chat/completions", {"messages": HELLO}), ("/v1/images/generations", {"prompt": "a cat"})):
        refused = server.post(path, {**body, field: value})
        assert (refused.status, refused.json["error"]["param"]) == (400, field)


def test_what_a_fill_has_not_is_refused(server: Server) -> None:
    for more, param in (
        ({"prompt": "no hole"}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a [mask:1]", "b [mask:1]"]}, "prompt"),
        ({"max_tokens": 9}, "max_tokens"),
        ({"suffix": "z"}, "suffix"),
        ({"messages": []}, "messages"),
        ({"choices": ["a"], "pattern": "a"}, "pattern"),
    ):
        refused = server.post("/v1/completions", {"prompt": "a [mask:1]", **more})
        assert refused.status == 400
        assert refused.said
        assert refused.json["error"]["param"] == param


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    """As the worker says it."""
    import io

    from mmada_lite.forms import letters
    from mmada_lite.serve.worker import Worker

    monkeypatch.setattr(letters, "find_spec", lambda name: None)
    inner, out = model.denoiser, io.BytesIO()
    try:
        task = {
            "id": 1,
            "task": "text",
            "messages": HELLO,
            "settings": {},
            "seed": 0,
            "stop": [],
            "stream": False,
            "steps": False,
        }
        Worker(model, 1000, out)._do({**task, "pattern": "a+never made before"})
    finally:
        model.denoiser = inner
    event = json.loads(out.getvalue())
    assert (event["event"], event["kind"], event["param"]) == ("error", "request", "pattern")
    assert 'pip install "mmada-lite[forms]"' in event["message"]
