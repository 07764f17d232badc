"""Requests that are done at once are answered as each alone: forwards that are alike are one batch, and no more is shared."""

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from serving import Server

from mmada_lite import Error, Model, load
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.serve.together import Together

CHAT, PAINT = "/v1/chat/completions", "/v1/images/generations"
ALIKE: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 32, "steps": 32}
FAST = {"cache": "dual", "threshold": 0.05, "refresh": 2, "early_stop": 1.0, "suffix_window": 8}
Work = Callable[[Model], np.ndarray]


@pytest.fixture
def model(tiny_bundle: Path) -> Model:
    return load(tiny_bundle, device="cpu", threads=1)


def at_once(model: Model, works: list[Work]) -> tuple[list[np.ndarray], dict[int, int]]:
    """What works give in a thread each, and how many forwards had so many of them."""
    together = Together(model.denoiser)
    model.denoiser = together
    start = threading.Barrier(len(works))

    def do(work: Work) -> np.ndarray:
        with together.seat(lambda: None):
            start.wait()
            return work(model)

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(do, works)), together.batches


def text(seed: int, words: str = "hello", **changes: Any) -> Work:
    def work(model: Model) -> np.ndarray:
        settings = model.text_defaults.replace(answer_length=32, steps=32, block_length=8, **changes)
        return model.chat(words, settings, seed=seed).result().ids

    return work


def picture(seed: int, **changes: Any) -> Work:
    return lambda model: model.paint("a cat", model.image_defaults.replace(steps=6, **changes), seed=seed).result().codes


def fill(seed: int) -> Work:
    return lambda model: model.fill("a [mask:3] b [mask:*3]", seed=seed).result().ids


@pytest.mark.parametrize(
    "works",
    [
        [text(seed, temperature=0.9) for seed in range(4)],
        [text(0, temperature=warmth) for warmth in (0.0, 0.3, 0.9)],
        [text(seed, temperature=0.9, **FAST) for seed in range(4)],
        [text(seed, temperature=0.9, guidance=1.5, cache="prefix") for seed in range(3)],
        [text(seed, temperature=0.9, cache="prompt", kv_commit_every=2) for seed in range(3)],
        [picture(seed, guidance=2.0) for seed in range(4)],
        [picture(seed, guidance=2.0, refresh=3, candidate_ratio=1.5, unconditional_every=2) for seed in range(3)],
        [text(1), text(2, "another text"), picture(1), fill(1), fill(2), text(3, **FAST)],
    ],
    ids=["seeds", "temperatures", "fast", "guided", "settled", "pictures", "cached pictures", "a mixture"],
)
def test_ids_are_those_of_each_alone(model: Model, works: list[Work]) -> None:
    alone = [work(model) for work in works]
    together, batches = at_once(model, works)
    for mine, expected in zip(together, alone, strict=True):
        assert np.array_equal(mine, expected)
    assert max(batches) > 1


class Counting:
    """A denoiser whose states say which rows came in, and which fails for what it is told to."""

    def __init__(self, fails: int = -1) -> None:
        self.rows, self.fails = [0], fails

    def forward(self, window: Window, *, keep: bool) -> tuple[Any, KeyValues | None]:
        self.rows.append(len(window.tokens))
        if (window.tokens == self.fails).any():
            raise Error("this one")
        return np.repeat(window.tokens[:, :1, None], window.queries.shape[1], axis=1).astype(np.float32), None


def ask(together: Together, token: int, wide: int = 1, length: int = 4) -> Any:
    window = Window(np.full((1, length), token), np.arange(length), np.zeros((1, wide), dtype=np.int64))
    return together.forward(window, keep=False)[0]


def seated(together: Together, works: list[Callable[[], Any]], check: Callable[[], None] = lambda: None) -> list[Any]:
    """What comes of works in a thread each: a value or an error."""
    start = threading.Barrier(len(works))

    def do(work: Callable[[], Any]) -> Any:
        with together.seat(check):
            start.wait()
            try:
                return work()
            except Error as error:
                return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(do, works))


def test_windows_of_one_length_are_one_batch_whatever_they_query() -> None:
    inner = Counting()
    together = Together(inner)
    together._last = 5.0  # seconds that a forward waits for others at most
    shapes = [each.shape for each in seated(together, [lambda n=n: ask(together, n, wide=n + 1) for n in range(3)])]
    assert shapes == [(1, 1, 1), (1, 2, 1), (1, 3, 1)]
    assert max(inner.rows) == 3
    others = seated(together, [lambda n=n: ask(together, n, length=n + 4) for n in range(3)])
    assert [each[0, 0, 0] for each in others] == [0, 1, 2]
    assert inner.rows[-3:] == [1, 1, 1]


def test_what_fails_for_one_fails_for_nobody_else() -> None:
    together = Together(Counting(fails=1))
    together._last = 5.0
    told = seated(together, [lambda n=n: ask(together, n) for n in range(3)])
    assert isinstance(told[1], Error)
    assert (told[0][0, 0, 0], told[2][0, 0, 0]) == (0, 2)


def test_who_is_to_end_leaves_the_others_alone() -> None:
    together, left = Together(Counting()), threading.Event()
    together._last = 5.0

    def check() -> None:
        if left.is_set() and threading.current_thread() is leaving[0]:
            raise Error("left")

    leaving: list[threading.Thread] = []

    def leave() -> Any:
        leaving.append(threading.current_thread())
        left.set()
        return ask(together, 0)

    told = seated(together, [leave, lambda: ask(together, 1), lambda: ask(together, 2)], check)
    assert isinstance(told[0], Error)
    assert (told[1][0, 0, 0], told[2][0, 0, 0]) == (1, 2)


def steps_of(body: bytes) -> Iterator[dict[str, Any]]:
    for part in body.split(b"\n\n"):
        data = part.partition(b"data: ")[2]
        if data and data != b"[DONE]":
            yield json.loads(data)


def test_each_of_several_streams_has_its_own_steps(batching: Server, model: Model) -> None:
    """And one whose client leaves in the middle ends no other."""

    def stream(seed: int) -> list[int]:
        asked = {**ALIKE, "seed": seed, "temperature": 0.9, "stream": True, "stream_mode": "denoise"}
        ids = np.full(32, model.vocabulary.special.mask)
        for chunk in steps_of(batching.post(CHAT, asked).body):
            if step := chunk.get("denoise"):
                assert (ids[step["positions"]] == model.vocabulary.special.mask).all()
                ids[step["positions"]] = step["tokens"]
        return ids.tolist()

    def leave(seed: int) -> list[int]:
        connection = http.client.HTTPConnection(urlsplit(batching.url).netloc, timeout=60)
        asked = {**ALIKE, "max_tokens": 200, "steps": 200, "seed": seed, "stream": True, "stream_mode": "denoise"}
        connection.request("POST", CHAT, json.dumps(asked), {"content-type": "application/json"})
        assert connection.getresponse().read(64)
        connection.close()
        return []

    settings = model.text_defaults.replace(answer_length=32, steps=32, temperature=0.9)
    with ThreadPoolExecutor(8) as pool:
        gone = [pool.submit(leave, seed) for seed in range(2)]
        streams = [pool.submit(stream, seed) for seed in range(6)]
        for seed, each in enumerate(streams):
            assert each.result() == model.chat("hello", settings, seed=seed).result().ids.tolist()
        for each in gone:
            each.result()
    batching.settle()
    assert not batching.log("fault")
    assert not batching.log("task failed")


def test_texts_and_pictures_at_once_are_the_librarys(batching: Server, model: Model) -> None:
    def ask(number: int) -> Any:
        if number % 3 == 0:
            body = {"prompt": "a cat", "seed": number, "steps": 4}
            return batching.post(PAINT, body).json["data"][0]["codes"]
        body = {**ALIKE, "seed": number, "temperature": 0.5 * (number % 3)}
        return batching.post(CHAT, body).json["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(ask, range(9)))
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            expected: Any = model.paint("a cat", model.image_defaults.replace(steps=4), seed=number).result().codes.tolist()
        else:
            settings = model.text_defaults.replace(answer_length=32, steps=32, temperature=0.5 * (number % 3))
            expected = model.chat("hello", settings, seed=number).result().answer
        assert answer == expected
