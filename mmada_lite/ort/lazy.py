"""What a large model on a CPU does so that memory suffices: a denoiser that opens when it is first asked, graphs that are open
only while they run, and freed memory that goes back to the system.

It knows how long something is open; what is opened is told to it.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues

if TYPE_CHECKING:
    import onnxruntime


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
