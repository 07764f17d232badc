"""What a large model does so that memory suffices: on a CPU a denoiser that opens when it is first asked, graphs that are open
only while they run, and freed memory that goes back to the system; on a card that has no room for all, sides that take turns.

It knows how long something is open; what is opened is told to it.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues

if TYPE_CHECKING:
    import onnxruntime

Opened = TypeVar("Opened")


class Sides:
    """The sides of a model of which one is on a device at a time: the transformer, and each graph of the image tokenizer. To
    use one closes the one before it; whoever comes meanwhile, in another thread, waits."""

    def __init__(self) -> None:
        self._turn = threading.RLock()
        self._open: dict[str, Any] = {}

    @contextmanager
    def use(self, side: str, open_it: Callable[[], Opened]) -> Iterator[Opened]:
        with self._turn:
            if side not in self._open:
                self._open.clear()
                self._open[side] = open_it()
            yield self._open[side]

    def now(self, side: str) -> Any:
        """What is open of a side, None where nothing is; asked without waiting."""
        return self._open.get(side)


class SideDenoiser:
    """A denoiser that is open only while it is its side's turn. Tensors that an earlier opening left on the device stay there
    and are read by the next one."""

    def __init__(self, sides: Sides, open_it: Callable[[], Denoiser]) -> None:
        self._sides, self._open = sides, open_it

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        with self._sides.use("transformer", self._open) as denoiser:
            return denoiser.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        with self._sides.use("transformer", self._open) as denoiser:
            return denoiser.predict(head, hidden, mix, temperature, uniform)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        with self._sides.use("transformer", self._open) as denoiser:
            return denoiser.logits(head, hidden, mix)

    def interrupt(self, on: bool) -> None:
        """As `OnnxDenoiser.interrupt`; while it is not open, nothing is interrupted."""
        if (denoiser := self._sides.now("transformer")) is not None:
            denoiser.interrupt(on)

    @property
    def opened(self) -> Denoiser:
        """What is open until another side's turn."""
        with self._sides.use("transformer", self._open) as denoiser:
            return denoiser


class SideSession:
    """A graph that is open only while it is its side's turn, in the place of a session."""

    def __init__(self, sides: Sides, side: str, open_it: "Callable[[], onnxruntime.InferenceSession]") -> None:
        self._sides, self._side, self._open = sides, side, open_it

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        with self._sides.use(self._side, self._open) as session:
            arrays: list[NDArray] = session.run(outputs, feeds)
            return arrays


class LazyDenoiser:
    """A denoiser that is opened when it is first asked: a picture is read, its tokenizer closed, before the weights come."""

    def __init__(self, open_it: Callable[[], Denoiser]) -> None:
        self._open = open_it
        self._opened: Denoiser | None = None

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        return self.opened.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        return self.opened.predict(head, hidden, mix, temperature, uniform)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return self.opened.logits(head, hidden, mix)

    def interrupt(self, on: bool) -> None:
        """As `OnnxDenoiser.interrupt`; while it is being opened, nothing is interrupted."""
        if self._opened is not None:
            self._opened.interrupt(on)  # type: ignore[attr-defined]

    @property
    def opened(self) -> Denoiser:
        if self._opened is None:
            self._opened = self._open()
        return self._opened


class TransientSession:
    """A graph that is opened for each run and closed behind it, in the place of a session."""

    def __init__(self, open_it: "Callable[[], onnxruntime.InferenceSession]") -> None:
        self._open = open_it

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        arrays = self._run_once(outputs, feeds)
        give_back_freed_memory()  # the session is gone by now
        return arrays

    def _run_once(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        arrays: list[NDArray] = self._open().run(outputs, feeds)
        return arrays


def give_back_freed_memory() -> None:
    """Ask the C library to return what was freed to the system; does nothing where it cannot (glibc's malloc_trim)."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
