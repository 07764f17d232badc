"""MMaDA on small machines: one masked-diffusion transformer that reads and writes text and pictures."""

from mmada_lite.errors import Error

__version__ = "0.1.0"
__all__ = ["Error", "__version__"]
