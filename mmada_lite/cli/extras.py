"""Packages beyond the runtime: where one is absent, the line that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmada_lite.errors import Error


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn the absence of another package into the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("", "mmada_lite"):
            raise  # a fault of ours
        raise Error(f'this needs {name}, which is not installed; pip install "mmada-lite[{extra}]"') from error
