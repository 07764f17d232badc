"""The routes through the openai client of Python: every answer is what the library gives for the same seed."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from serving import Server

from mmada_lite import Model, load

HELLO = [{"role": "user", "content": "hello"}]
SMALL = {"steps": 4, "guidance": 0.0}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, device="cpu", threads=1)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def half() -> Image.Image:
    """A mask: the right half is to be drawn anew."""
    flags = np.zeros((16, 16), np.uint8)
    flags[:, 8:] = 255
    return Image.fromarray(flags)


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def pixels(item: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))).convert("RGB"))


def test_the_model_is_listed_and_another_is_404(client: openai.OpenAI, model: Model) -> None:
    (only,) = client.models.list().data
    assert only.id == model.bundle.name
    assert client.models.retrieve(only.id).id == only.id
    with pytest.raises(openai.NotFoundError, match="no model is called"):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError, match="no model is called"):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="no model is called"):
        client.images.generate(model="gpt-9", prompt="a cat")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_is_the_librarys(client: openai.OpenAI, model: Model, temperature: float) -> None:
    settings = model.text_defaults.replace(answer_length=24, steps=12, temperature=temperature)
    answer = model.chat(HELLO, settings, seed=11)
    expected = answer.result()
    given: Any = {"model": model.bundle.name, "messages": HELLO, "max_tokens": 24, "temperature": temperature, "seed": 11}
    whole = client.chat.completions.create(**given, extra_body={"steps": 12})
    assert whole.choices[0].message.content == expected.answer
    assert whole.choices[0].finish_reason == ("stop" if expected.complete else "length")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == answer.prompt_length
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.model_extra["seed"] == 11
    stream = client.chat.completions.create(
        **given, stream=True, stream_options={"include_usage": True}, extra_body={"steps": 12, "stream_mode": "denoise"}
    )
    text, ids, last = "", np.full(24, -1), None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            continue
        last = chunk
        if step := chunk.model_extra.get("denoise"):
            ids[step["positions"]] = step["tokens"]
            assert len(step["confidence"]) == len(step["tokens"])
            assert all(0 <= share <= 1 for share in step["confidence"])
    assert text == expected.answer
    ids[ids < 0] = model.vocabulary.special.mask
    assert ids.tolist() == expected.ids.tolist()
    assert last is not None
    assert last.usage == whole.usage


def test_a_seed_that_is_told_gives_the_answer_again(client: openai.OpenAI, model: Model) -> None:
    given: Any = {"model": model.bundle.name, "messages": HELLO, "max_tokens": 16, "temperature": 1.0}
    first = client.chat.completions.create(**given)
    again = client.chat.completions.create(**given, seed=first.model_extra["seed"])
    assert again.choices[0].message.content == first.choices[0].message.content


def test_an_answer_stops_at_a_text(client: openai.OpenAI, model: Model) -> None:
    given: Any = {"model": model.bundle.name, "messages": HELLO, "max_tokens": 24, "seed": 3, "temperature": 1.0}
    whole = client.chat.completions.create(**given).choices[0].message.content
    assert len(whole) > 4
    stop = whole[3:5]
    stopped = client.chat.completions.create(**given, stop=[stop]).choices[0]
    assert stopped.message.content == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"
    stream = client.chat.completions.create(**given, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == stopped.message.content


def test_a_picture_is_seen(client: openai.OpenAI, model: Model, photo: Image.Image) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": data_url(photo)}}]
    messages: Any = [{"role": "user", "content": parts}]
    settings = model.text_defaults.replace(answer_length=16, steps=8)
    expected = model.ask(photo, "what is this?", settings, seed=2).result()
    extra = {"steps": 8}
    whole = client.chat.completions.create(
        model=model.bundle.name, messages=messages, max_tokens=16, seed=2, temperature=settings.temperature, extra_body=extra
    )
    assert whole.choices[0].message.content == expected.answer
    parts[1]["image_url"] = {"url": "http://127.0.0.1:1/cat.png"}
    with pytest.raises(openai.BadRequestError, match="no URL is fetched"):
        client.chat.completions.create(model=model.bundle.name, messages=messages)
    parts[1]["image_url"] = {"url": "file:///etc/hostname"}
    with pytest.raises(openai.BadRequestError, match="no URL is fetched"):
        client.chat.completions.create(model=model.bundle.name, messages=messages)


def test_pictures_are_the_librarys(client: openai.OpenAI, server: Server, model: Model) -> None:
    settings = model.image_defaults.replace(**SMALL)
    made = client.images.generate(
        model=model.bundle.name, prompt="a cat", n=2, size="auto", response_format="b64_json", extra_body={"seed": 7, **SMALL}
    )
    for number, item in enumerate(made.data):
        expected = model.paint("a cat", settings, seed=7 + number).result()
        assert item.model_extra["codes"] == expected.codes.tolist()
        assert np.array_equal(pixels(item), np.asarray(expected.picture))
    raw = server.post("/v1/images/generations", {"prompt": "a cat", "seed": 7, **SMALL}, accept="image/png")
    assert raw.headers["content-type"] == "image/png"
    assert raw.body.startswith(b"\x89PNG")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw.body))), pixels(made.data[0]))


def test_a_picture_is_streamed_as_it_is_drawn(client: openai.OpenAI, model: Model) -> None:
    extra = {"seed": 7, **SMALL, "stream_mode": "denoise"}
    stream = client.images.generate(model=model.bundle.name, prompt="a cat", stream=True, partial_images=1, extra_body=extra)
    events = list(stream)
    kinds = [event.type.partition(".")[2] for event in events]
    assert kinds == ["step", "step", "partial_image", "step", "step", "completed"]
    assert [event.model_extra["choices"] for event in events if event.type.endswith("step")] == [[]] * 4
    drawing = model.paint("a cat", model.image_defaults.replace(**SMALL), seed=7)
    previews = [np.asarray(drawing.preview()) for _ in drawing]
    assert np.array_equal(pixels(events[2]), previews[1])
    assert np.array_equal(pixels(events[-1]), previews[-1])
    every = {"seed": 7, **SMALL, "preview_every": 1}
    again = list(client.images.generate(model=model.bundle.name, prompt="a cat", stream=True, extra_body=every))
    assert [event.type.partition(".")[2] for event in again] == ["partial_image"] * 3 + ["completed"]
    assert all(np.array_equal(pixels(event), preview) for event, preview in zip(again, previews, strict=True))


def test_a_mask_is_drawn_anew(client: openai.OpenAI, model: Model, photo: Image.Image, half: Image.Image) -> None:
    """A mask is white, or in OpenAI's way transparent, where the picture is drawn anew."""
    settings = model.image_defaults.replace(**SMALL)
    expected = np.asarray(model.inpaint(photo, half, "a cat", settings, seed=5).picture)
    clear = photo.convert("RGBA")
    clear.putalpha(half.point(lambda shade: 255 - shade))
    for mask in (half, clear):
        made = client.images.edit(
            model=model.bundle.name,
            image=("photo.png", png(photo)),
            mask=("mask.png", png(mask)),
            prompt="a cat",
            extra_body={"seed": 5, **SMALL},
        )
        assert np.array_equal(pixels(made.data[0]), expected)


def test_a_picture_grows_and_is_edited_by_a_mask_alone(client: openai.OpenAI, model: Model, photo: Image.Image) -> None:
    given: Any = {"model": model.bundle.name, "image": ("photo.png", png(photo)), "prompt": "a cat"}
    with pytest.raises(openai.BadRequestError, match="send a mask"):
        client.images.edit(**given)
    settings = model.image_defaults.replace(**SMALL)
    expected = model.extend(photo, "a cat", settings, side="left", amount=0.5, seed=5).result()
    made = client.images.edit(**given, extra_body={"side": "left", "amount": 0.5, "seed": 5, **SMALL})
    assert made.size == "24x16"
    assert np.array_equal(pixels(made.data[0]), np.asarray(expected.picture))


def test_what_it_cannot_honour_is_refused_by_name(client: openai.OpenAI, model: Model) -> None:
    given: Any = {"model": model.bundle.name, "messages": HELLO}
    for extra in ({"response_format": {"type": "json_object"}}, {"top_p": 0.5}, {"n": 2}, {"logprobs": True}):
        with pytest.raises(openai.BadRequestError, match=next(iter(extra))) as refused:
            client.chat.completions.create(**given, extra_body=extra)
        assert refused.value.param == next(iter(extra))
    with pytest.raises(openai.BadRequestError, match="did you mean 'temperature'"):
        client.chat.completions.create(**given, extra_body={"temprature": 1})
    with pytest.raises(openai.BadRequestError, match="keeps no pictures"):
        client.images.generate(model=model.bundle.name, prompt="a cat", response_format="url")
    neutral = {"top_p": 1, "n": 1, "presence_penalty": 0, "response_format": {"type": "text"}, "user": "me", "tools": []}
    assert client.chat.completions.create(**given, max_tokens=8, extra_body=neutral).choices


def test_metrics_count_what_was_done(client: openai.OpenAI, server: Server, model: Model) -> None:
    def figures() -> dict[str, float]:
        lines = server.ask("GET", "/metrics").body.decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    before = figures()
    whole = client.chat.completions.create(model=model.bundle.name, messages=HELLO, max_tokens=16, extra_body={"steps": 16})
    after = figures()
    assert whole.usage is not None
    assert after["mmada_tokens_total"] - before["mmada_tokens_total"] == whole.usage.completion_tokens
    assert after["mmada_model_calls_total"] > before["mmada_model_calls_total"]
    for name in ("mmada_queue_seconds_count", "mmada_first_step_seconds_count"):
        assert after[name] - before[name] == 1
    answered = 'mmada_requests_total{route="/v1/chat/completions",status="200"}'
    assert after[answered] - before.get(answered, 0) == 1
    assert after['mmada_resident_bytes{process="worker"}'] > after['mmada_resident_bytes{process="server"}'] > 1e6
