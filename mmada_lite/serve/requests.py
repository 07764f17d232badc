"""What clients send, read and checked: the fields of OpenAI's chat and image requests, and ours beside them, as tasks for the
worker.

A field that this model cannot honour is refused by its name, never passed over. It knows no tokens, no queue and no sockets.
"""

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmada_lite.contracts import json_of
from mmada_lite.errors import Error, did_you_mean, shown
from mmada_lite.serve.limits import CHARACTERS_A_TOKEN
from mmada_lite.serve.refusals import Refused

Body = Mapping[str, Any]
Task = dict[str, Any]
MOST_PICTURES, MOST_STOPS, MOST_MESSAGES, MOST_CHOICES = 4, 4, 1024, 1024
FORMATS = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}
# Fields that say nothing to this model: what they mean holds anyway, or concerns somebody else.
_PASSED_OVER = {
    *(
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "moderation",
        "parallel_tool_calls",
    ),
    *("model", "stream"),
}
# Fields that it cannot honour, and the values at which they ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{"top_p": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "logprobs": (False,)},
    **{"top_logprobs": (0,), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none",)},
    **{"modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": (), "verbosity": ()},
    **{"web_search_options": (), "input_fidelity": ("low",), "output_compression": (100,)},
    **{"background": ("auto", "opaque"), "quality": ("auto", "standard"), "style": ()},
}
# Those that only /v1/completions has: the holes of a text say how long they are, and the whole text comes back.
_NEUTRAL_OF_FILL = {
    **_NEUTRAL,
    "max_tokens": (),
    "stop": ([],),
    "suffix": ("",),
    "echo": (True,),
    "best_of": (1,),
    "logprobs": (0,),
}
_FORM = ("response_format", "choices", "pattern")  # each says what an answer, or its holes, must be
_CHAT = {
    *("messages", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "stream_options", "stream_mode", "answer"),
    *_FORM,
}
_FILL = {"prompt", "seed", "n", "stream_options", "stream_mode", *_FORM}
_PICTURE = {
    *("prompt", "n", "size", "response_format", "output_format", "seed", "partial_images", "stream_mode", "preview_every"),
    *("think", "side", "amount"),
}
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wish:
    """A request: what the worker is to do, and in which form the client wants it. usage: counts at the end of a stream."""

    task: Task
    stream: bool = False
    usage: bool = False


def read_json(data: bytes) -> Body:
    """The body of a request. Raises Refused."""
    try:
        body = json_of(data)
    except (ValueError, UnicodeDecodeError) as fault:
        raise Refused(400, f"the body is no JSON: {shown(str(fault))}") from None
    if not isinstance(body, Mapping):
        raise Refused(400, f"the body is {shown(body)}; send an object of JSON")
    return body


def of_model(body: Body, model: Mapping[str, Any]) -> None:
    """Raise Refused where the request names another model than there is."""
    name = body.get("model")
    if name is not None and name != model["name"]:
        raise Refused(404, f"no model is called {shown(name)}; this server has {model['name']!r}", "model", "model_not_found")


def chat(body: Body, model: Mapping[str, Any]) -> Wish:
    """A request for an answer. Raises Refused."""
    of_model(body, model)
    settings = _settings(body, _CHAT, model["text"])
    lengths = {name: _whole(body, name, 1, model["max_tokens"]) for name in ("max_tokens", "max_completion_tokens")}
    given = {value for value in (*lengths.values(), settings.get("answer_length")) if value is not None}
    if len(given) > 1:
        raise Refused(400, "max_tokens, max_completion_tokens and answer_length differ; send one of them", "max_tokens")
    if given:
        settings["answer_length"] = given.pop()
    answer = body.get("answer")
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise Refused(400, f"answer is {shown(answer)}; send how the answer begins, or all of it but its holes", "answer")
    task = {"task": "text", "messages": _messages(body.get("messages"), model), "stop": _stops(body)}
    if answer is not None:
        task["answer"] = _text(answer, "answer")
        _short_enough(len(answer), model)
    return _written(body, task, settings, model)


def fill(body: Body, model: Mapping[str, Any]) -> Wish:
    """A request to fill the holes of a text, as /v1/completions takes it. Raises Refused."""
    of_model(body, model)
    settings = _settings(body, _FILL, model["text"], _NEUTRAL_OF_FILL)
    prompt = body.get("prompt")
    texts = prompt if isinstance(prompt, list) and len(prompt) == 1 else [prompt]
    return _written(body, {"task": "fill", "text": _prompt(texts[0], model), "stop": []}, settings, model)


def _written(body: Body, task: Task, settings: dict[str, Any], model: Mapping[str, Any]) -> Wish:
    """What requests for a text have in common: how it is streamed, from which seed, and of which form it must be."""
    _whole(body, "n", 1, 1)
    stream, mode = _flag(body, "stream"), _one_of(body, "stream_mode", ("text", "denoise"))
    if mode == "denoise" and not stream:
        raise Refused(400, 'stream_mode "denoise" is for streams; send "stream": true with it', "stream_mode")
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping) or (options and not stream):
        raise Refused(400, "stream_options is an object, and for streams alone", "stream_options")
    about = {"settings": settings, "seed": _seed(body), "stream": stream, "steps": mode == "denoise"}
    return Wish(task | about | _form(body, model), stream, usage=_flag(options, "include_usage"))


def _form(body: Body, model: Mapping[str, Any]) -> Task:
    """Of which form a text must be: `choices`, `pattern` or `schema` for the worker, or nothing."""
    schema = _schema(body.get("response_format"))
    given = [name for name in _FORM if (schema if name == "response_format" else body.get(name)) is not None]
    if len(given) > 1:
        raise Refused(400, f"{given[0]} and {given[1]} both say what the answer must be; send one of them", given[1])
    if schema is not None:
        return {"schema": schema}
    choices, pattern = body.get("choices"), body.get("pattern")
    if pattern is not None:
        if not isinstance(pattern, str) or not pattern:
            raise Refused(400, f"pattern is {shown(pattern)}; send a regular expression", "pattern")
        return {"pattern": _text(pattern, "pattern")}
    if choices is None:
        return {}
    fine = isinstance(choices, list) and 1 <= len(choices) <= MOST_CHOICES
    if not fine or not all(isinstance(each, str) and each.strip() for each in choices):
        raise Refused(400, f"choices is {shown(choices)}; send a list of texts", "choices")
    _short_enough(max(map(len, choices)), model)
    return {"choices": [_text(each, "choices") for each in choices]}


def _schema(wanted: Any) -> Any:
    """The JSON schema of a response_format, None where it asks for plain text."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or wanted == {"type": "text"}:
        return None
    if kind == "json_object":
        words = 'response_format "json_object" leaves the object open; send "json_schema" with the schema of the answer'
        raise Refused(400, words, "response_format", "unsupported_parameter")
    about = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(about, Mapping) or not isinstance(about.get("schema"), Mapping):
        like = '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        raise Refused(400, f"response_format is {shown(wanted)}; send {like}", "response_format")
    return about["schema"]


def picture(body: Body, model: Mapping[str, Any], image: bytes | None = None, mask: bytes | None = None) -> Wish:
    """A request for pictures: from a sentence, or with an image of one that is drawn anew or grown. Raises Refused."""
    of_model(body, model)
    if model["resolution"] is None:
        raise Refused(400, f"the model {model['name']!r} neither sees nor draws", "model")
    settings = _settings(body, _PICTURE, model["image"])
    if _one_of(body, "response_format", ("b64_json", "url")) == "url":
        raise Refused(400, 'this server keeps no pictures; send "response_format": "b64_json"', "response_format")
    side = f"{model['resolution']}x{model['resolution']}"
    if body.get("size") not in (None, "auto", side):
        raise Refused(400, f"size is {shown(body['size'])}; this model draws {side}", "size")
    stream, mode = _flag(body, "stream"), _one_of(body, "stream_mode", ("text", "denoise"))
    number, partial = _whole(body, "n", 1, MOST_PICTURES) or 1, _whole(body, "partial_images", 0, 3) or 0
    every = _whole(body, "preview_every", 0, 1 << 20) or 0
    if not stream and (mode == "denoise" or partial or every):
        raise Refused(400, 'stream_mode, partial_images and preview_every are for streams; send "stream": true', "stream")
    task: Task = {
        "task": "picture",
        "kind": "paint",
        "prompt": _prompt(body.get("prompt"), model),
        "settings": settings,
        "seed": _seed(body, number),
        "n": number,
        "steps": mode == "denoise",
        "preview_every": every,
        "partial": partial,
        "format": FORMATS[_one_of(body, "output_format", tuple(FORMATS)) or "png"],
        "think": body.get("think") or False,
    }
    if not isinstance(task["think"], (bool, str)):
        raise Refused(400, f"think is {shown(task['think'])}; use true, false or a thought", "think")
    return Wish(task | _edit(body, image, mask), stream)


def _edit(body: Body, image: bytes | None, mask: bytes | None) -> Task:
    """Which picture is drawn anew or grown; nothing for one that is painted."""
    grown = [name for name in ("side", "amount") if body.get(name) is not None]
    if image is None:
        if grown:
            raise Refused(400, f"{grown[0]} is for /v1/images/edits, which grows a picture", grown[0])
        return {}
    if body.get("think"):
        raise Refused(400, "think is for /v1/images/generations", "think")
    data = base64.b64encode(image).decode()
    if mask is not None and not grown:
        return {"kind": "inpaint", "image": data, "mask": base64.b64encode(mask).decode()}
    if mask is not None:
        raise Refused(400, f"send a mask, which is drawn anew, or {grown[0]}, which grows the picture", grown[0])
    if not grown:
        raise Refused(
            400, "this model cannot edit a whole picture by words; send a mask, or side and amount to grow the picture", "mask"
        )
    side = _one_of(body, "side", ("right", "left", "top", "bottom")) or "right"
    return {
        "kind": "extend",
        "image": data,
        "side": side,
        "amount": 0.5 if body.get("amount") is None else _number(body, "amount"),
    }


def of_form(values: Mapping[str, str]) -> Body:
    """The texts of a form as JSON would have them: numbers and flags where they look so; words stay words."""
    words = ("prompt", "model", "think", "user")
    return {
        name: json.loads(text) if name not in words and re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?|true|false", text) else text
        for name, text in values.items()
    } | ({"think": json.loads(values["think"])} if values.get("think") in ("true", "false") else {})


def _settings(
    body: Body, ours: set[str], names: Sequence[str], neutral: Mapping[str, tuple[Any, ...]] = _NEUTRAL
) -> dict[str, Any]:
    """The settings of the model that a request changes. neutral: the fields that it cannot honour, and the values at which they
    ask for nothing. Raises Refused for a field that nobody honours."""
    settings = {}
    for name, value in body.items():
        if name in ours or name in _PASSED_OVER or (value is None and name in {*neutral, *names}):
            continue
        if name in names:
            if not isinstance(value, (bool, int, float, str)):
                raise Refused(400, f"{name} is {shown(value)}; use a number, a word or a flag", name)
            settings[name] = value
        elif name in neutral:
            if not any(value == each for each in neutral[name]):
                raise Refused(
                    400, f"this server cannot honour {name} {shown(value)}; leave it out", name, "unsupported_parameter"
                )
        else:
            hint = did_you_mean(name, [*ours, *names, *neutral], "leave it out")
            raise Refused(400, f"there is no field {shown(name)}; {hint}", name[:80], "unknown_parameter")
    return settings


def _messages(messages: Any, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages or len(messages) > MOST_MESSAGES:
        raise Refused(400, f"messages is {shown(messages)}; send a list of 1 to {MOST_MESSAGES} messages", "messages")
    read = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise Refused(400, f"{where} is {shown(message)}; send an object with role and content", where)
        role = "system" if message.get("role") == "developer" else message.get("role")
        if role not in ("system", "user", "assistant"):
            raise Refused(400, f"{where} has the role {shown(role)}; use system, user or assistant", f"{where}.role")
        read.append({"role": role, "content": _content(message.get("content"), where, model)})
    _short_enough(sum(_characters(message["content"]) for message in read), model)
    return read


def _characters(content: Any) -> int:
    return len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)


def _content(content: Any, where: str, model: Mapping[str, Any]) -> Any:
    if isinstance(content, str):
        return _text(content, f"{where}.content")
    if not isinstance(content, list) or not content:
        raise Refused(400, f"{where}.content is {shown(content)}; send a text or a list of parts", f"{where}.content")
    parts: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        at = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": _text(part["text"], at)})
        elif kind == "image_url" and isinstance(part.get("image_url"), Mapping):
            parts.append({"type": "image", "image": _data(part["image_url"].get("url"), at, model)})
        else:
            raise Refused(400, f"{at} is {shown(part)}; parts are of the types text and image_url", at)
    return parts


def _data(url: Any, where: str, model: Mapping[str, Any]) -> str:
    """The base64 of a data URL. Nothing is fetched for a client: no other URL is taken."""
    if model["resolution"] is None:
        raise Refused(400, f"the model {model['name']!r} sees no pictures", where)
    found = _DATA_URL.match(url) if isinstance(url, str) else None
    if found is None:
        raise Refused(400, f"{where} is {shown(url)}; send the picture as data:image/png;base64,... : no URL is fetched", where)
    data = url[found.end() :]
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{where} is no base64; encode the file's bytes anew", where) from None
    return str(data)


def _prompt(prompt: Any, model: Mapping[str, Any]) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise Refused(400, f"prompt is {shown(prompt)}; send a sentence", "prompt")
    _short_enough(len(prompt), model)
    return _text(prompt, "prompt")


def _text(text: str, where: str) -> str:
    from mmada_lite.calls import text_of

    try:
        return text_of(text, where)
    except Error as error:
        raise Refused(400, str(error), where) from None


def _short_enough(characters: int, model: Mapping[str, Any]) -> None:
    if characters > (most := CHARACTERS_A_TOKEN * model["max_tokens"]):
        raise Refused(
            400,
            f"the text has {characters:,} characters, and the model reads {model['max_tokens']} tokens; send at most {most:,}",
            code="context_length_exceeded",
        )


def _seed(body: Body, several: int = 1) -> int:
    """The seed; without one, any that every language's JSON can say."""
    given = _whole(body, "seed", 0, 2**64 - several)
    return secrets.randbelow(2**53 - several) if given is None else given


def _stops(body: Body) -> list[str]:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    fine = isinstance(stops, list) and len(stops) <= MOST_STOPS and all(isinstance(each, str) and each for each in stops)
    if not fine or any(len(each) > 1000 for each in stops):
        raise Refused(400, f"stop is {shown(stop)}; send a text or at most {MOST_STOPS} of them", "stop")
    return [_text(each, "stop") for each in stops]


def _whole(body: Body, name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        only = f"{least}" if least == most else f"a whole number from {least} to {most}"
        raise Refused(400, f"{name} is {shown(value)}; use {only}", name)
    return value


def _number(body: Body, name: str) -> float:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e9:
        raise Refused(400, f"{name} is {shown(value)}; use a number", name)
    return float(value)


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name} is {shown(value)}; use true or false", name)
    return bool(value)


def _one_of(body: Body, name: str, words: tuple[str, ...]) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or value not in words):
        raise Refused(400, f"{name} is {shown(value)}; use one of {', '.join(words)}", name)
    return value
