"""MMaDA on small machines: one masked-diffusion transformer that reads and writes text and pictures.

The public names are found at first use, so that `import mmada_lite` costs nothing and changes nothing. It imports nothing
either: the command line is deaf to no Ctrl-C for longer than that takes.
"""

TYPE_CHECKING = False  # of typing, which takes a third of the command line's start
if TYPE_CHECKING:
    from mmada_lite.decoding.settings import ImageAcceleration, ImageSettings, TextAcceleration, TextSettings
    from mmada_lite.errors import Error
    from mmada_lite.model import Model, load

__version__ = "0.2.0"
__all__ = ["Error", "ImageAcceleration", "ImageSettings", "Model", "TextAcceleration", "TextSettings", "__version__", "load"]

_HOMES = {
    "Error": "mmada_lite.errors",
    "ImageAcceleration": "mmada_lite.decoding.settings",
    "ImageSettings": "mmada_lite.decoding.settings",
    "Model": "mmada_lite.model",
    "TextAcceleration": "mmada_lite.decoding.settings",
    "TextSettings": "mmada_lite.decoding.settings",
    "load": "mmada_lite.model",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmada_lite' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
