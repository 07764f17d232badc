"""A card without room for all of a large model: the transformer and the image tokenizer take turns, what is written stays the
same, and keys and values are not held twice. On the CPU provider, by the code that a card runs."""

import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmada_lite
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Window
from mmada_lite.decoding.kv_cache import KVBuffer
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.memory_plan import Shape, need
from mmada_lite.ort import loader, nvidia
from mmada_lite.ort.device_denoiser import DeviceDenoiser
from mmada_lite.ort.lazy import SideDenoiser, Sides
from mmada_lite.ort.nvidia import Card
from mmada_lite.ort.session import Device, open_session

CPU, CUDA = Device("cpu", "a test"), Device("cuda", "a test")
RED = Image.new("RGB", (16, 16), "red")
TEXT = TextSettings(answer_length=8, steps=8, block_length=4).replace(cache="dual")
SIDES = {"backbone": "transformer", "text_head": "transformer", "image_head": "transformer", "embedder": "transformer"}


class Watched:
    """Which graphs of the bundle are open: their sessions, and how many times each was opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[tuple[str, weakref.ref[Any]]] = []
        original = loader.open_graph

        def open_graph(bundle: Bundle, graph: str, *given: Any, **named: Any) -> Any:
            session = original(bundle, graph, *given, **named)
            self.sessions.append((graph, weakref.ref(session)))
            assert len(self.sides) == 1, f"{self.sides} are open at once"
            return session

        monkeypatch.setattr(loader, "open_graph", open_graph)

    @property
    def sides(self) -> set[str]:
        return {SIDES.get(graph, graph) for graph, session in self.sessions if session() is not None}

    def opened(self, graph: str) -> int:
        return sum(name == graph for name, _ in self.sessions)


def on_device(bundle: Bundle) -> Denoiser:
    """The denoiser of a card, on the CPU provider."""
    names = ("embedder", "backbone", "text_head", "image_head")
    sessions = {name: loader.open_graph(bundle, name, CPU, 1) for name in names}
    a = bundle.architecture
    return DeviceDenoiser(sessions, (a.n_layers, a.n_kv_heads, a.head_dim), "cpu", lambda graph: open_session(graph, CPU, 1))


@pytest.mark.parametrize("kind", ["plain", "device"])
def test_one_side_is_open_at_a_time_and_the_loop_does_not_know(
    tiny_bundle: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture is read, an answer about it begun, another picture drawn between its steps, and the answer ended."""
    plain = mmada_lite.load(tiny_bundle, device="cpu", threads=1)
    codes = np.arange(16).reshape(4, 4)
    expected, picture = [step.tokens.tolist() for step in plain.ask(RED, "what?", TEXT)], plain.picture_of(codes)
    turns, watched = mmada_lite.load(tiny_bundle, device="cpu", threads=1), Watched(monkeypatch)
    sides, bundle = Sides(), turns.bundle
    turns.denoiser = (
        loader.open_denoiser(bundle, CPU, 1, sides=sides)
        if kind == "plain"
        else SideDenoiser(sides, partial(on_device, bundle))
    )
    turns._codec = loader.open_codec(bundle, CPU, 1, sides)
    assert watched.sides == set()
    written = []
    for number, step in enumerate(turns.ask(RED, "what?", TEXT)):
        assert watched.sides == {"transformer"}
        written.append(step.tokens.tolist())
        if number in (1, 5):
            assert turns.picture_of(codes).tobytes() == picture.tobytes()
            assert watched.sides == {"image_decoder"}
    assert written == expected
    assert (watched.opened("image_encoder"), watched.opened("image_decoder"), watched.opened("backbone")) == (1, 2, 3)


def test_an_interruption_finds_what_is_open(tiny_bundle: Path) -> None:
    denoiser = loader.open_denoiser(Bundle.open(tiny_bundle), CPU, 1, sides=Sides())
    assert isinstance(denoiser, SideDenoiser)
    denoiser.interrupt(True)  # nothing is open yet
    window = Window(np.array([[1, 2, 3]]), np.arange(3), np.array([[2]]))
    hidden, _ = denoiser.forward(window, keep=False)
    denoiser.interrupt(True)
    with pytest.raises(Exception, match="terminate flag"):
        denoiser.forward(window, keep=False)
    denoiser.interrupt(False)
    assert denoiser.opened is denoiser.opened
    assert (denoiser.forward(window, keep=False)[0] == hidden).all()


def test_a_thread_waits_for_the_other_side() -> None:
    sides, inside, done = Sides(), threading.Event(), threading.Event()

    def other() -> None:
        inside.set()
        with sides.use("image_decoder", object):
            done.set()

    with sides.use("transformer", object):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert not done.wait(0.05)
        assert sides.now("transformer") is not None
    assert done.wait(10)
    thread.join()
    assert sides.now("transformer") is None


@pytest.mark.parametrize("room", [-1, 0, None])
def test_they_take_turns_where_the_plan_finds_no_room(
    room: int | None, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    defaults = bundle.text_defaults, bundle.image_defaults
    monkeypatch.setattr(loader, "LARGE", 0)
    whole = need(
        Shape.of(bundle), bundle.quantization, defaults[0], device="cuda", target="cpu", image=defaults[1], at_once=True
    )
    free = None if room is None else whole.card_peak + room
    monkeypatch.setattr(nvidia, "cards", lambda: (Card("planted", "8.9", 8 << 30, free),))
    assert loader.takes_turns(bundle, CUDA, *defaults) is (room == -1)
    assert not loader.takes_turns(bundle, CPU, *defaults)
    monkeypatch.setattr(loader, "LARGE", 1 << 30)
    assert not loader.takes_turns(bundle, CUDA, *defaults)  # a small one has room everywhere


def test_keys_and_values_are_freed_while_they_are_cut(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some at a time, and only where they are not read any more; what is made of them is the same."""
    from mmada_lite.ort import device_denoiser

    monkeypatch.setattr(device_denoiser, "_AT_ONCE", 2)
    denoiser = on_device(Bundle.open(tiny_bundle))
    window = Window(np.ones((1, 9), dtype=np.int64), np.arange(9), np.arange(9)[None])
    places = np.array([[0, 3, 5]])

    def left(rearrange: Any) -> tuple[list[int], list[np.ndarray], bool]:
        _, kept = denoiser.forward(window, keep=True)
        assert kept is not None
        handles: list[Any] = [*kept.keys, *kept.values]
        runner, counts = handles[0].runner, list[int]()
        run = type(runner).run

        def counted(self: Any, *given: Any, **named: Any) -> Any:
            counts.append(sum(handle.value is not None for handle in handles))
            return run(self, *given, **named)

        monkeypatch.setattr(type(runner), "run", counted)
        made = rearrange(kept)
        monkeypatch.setattr(type(runner), "run", run)
        return (
            counts,
            [handle.value.numpy() for handle in (*made.keys, *made.values)],
            any(h.value is not None for h in handles),
        )

    for rearrange in (
        lambda kept, last: kept.without(2, 5, KVBuffer(), last=last),
        lambda kept, last: kept.at(places, KVBuffer(), last=last),
    ):
        counts, arrays, any_left = left(partial(rearrange, last=True))
        assert (counts, any_left) == (list(range(len(arrays), 0, -2)), False)
        counts, again, any_left = left(partial(rearrange, last=False))
        assert (counts, any_left) == ([len(arrays)], True)
        for one, other in zip(arrays, again, strict=True):
            np.testing.assert_array_equal(one, other)
