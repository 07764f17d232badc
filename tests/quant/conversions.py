"""What the tests of quantization share: a small request and what it makes of the tiny checkpoint."""

from pathlib import Path

from mmada_lite.bundle import Bundle
from mmada_lite.quant.convert import Request

SMALL = Request(format="int4-b32", method="gptq", prompts=2)


def files_of(bundle: Path) -> dict[str, str]:
    return {name: info.sha256 for name, info in Bundle.open(bundle, verify="full").files.items()}
