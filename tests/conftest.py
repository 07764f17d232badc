"""Where the recorded numbers are, and what tests share that is made once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmada_lite import Model
from mmada_lite.vocabulary import SpecialTokens, Tokenizer, Vocabulary

if TYPE_CHECKING:
    from watched import Watch

    from mmada_lite.train.data.sequences import Sequences

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="how often tests/serve kills the process of a model under load")
    parser.addoption("--fuzz", action="store_true", help="all mutations of tests/fuzz, not a tenth of them")


@pytest.fixture(scope="session", autouse=True)
def kept_speeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, in which a measurement of this machine lies that finds all forms equally fast: no test
    waits for one, and none is warned."""
    from mmada_lite.ort import measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        even = dict.fromkeys(measured.ROWS, 1.0)
        counts = measured.thread_counts(measured.usable_cores())
        assert measured.keep(measured.Speeds(dict.fromkeys(measured.FORMS, even), dict.fromkeys(counts, even))) is None
        yield


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def vocabulary() -> Vocabulary:
    """A hundred text ids, twelve special tokens from 100, image codes from 112."""
    return Vocabulary(SpecialTokens(*range(100, 112)), image_code_offset=112, codebook_size=32, size=144)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights with pictures and a tokenizer. Do not write to it: copy it."""
    from tiny_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint as a bundle: 16-pixel pictures of 4 x 4 codes, 256 tokens. Do not write to it: copy it."""
    from mmada_lite.export.bundle import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tiny_checkpoint.parent / "bundle", precision="fp32")


@pytest.fixture(scope="session")
def watch(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> "Watch":
    """Over files and look-ups of a process. Skips, with the reason, where it cannot be."""
    from watched import Watch

    return Watch(tmp_path_factory.mktemp("watch"), tiny_bundle / "text_head.onnx")


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json of the recipe, from a part of its sentences. Do not write to it."""
    from toys import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="session")
def toy_sequences(toy_tokenizer: Path) -> "Sequences":
    """Every task of the small model on pictures of random codes."""
    from toys import scene_pool, single_pool, vocabulary_of

    from mmada_lite.train.data.sequences import Sequences

    tokenizer = Tokenizer.from_file(toy_tokenizer)
    return Sequences(tokenizer, vocabulary_of(tokenizer), single_pool(), scene_pool())


@pytest.fixture(params=["pieces", "single tokens"])
def thinker(request: pytest.FixtureRequest, tiny_bundle: Path) -> Model:
    """The tiny model with a tokenizer that spells the tags of a thought in bytes, and with one that has a token for each."""
    import tokenizers
    from scripted import WRITTEN

    from mmada_lite import load
    from mmada_lite.vocabulary import CLOSE, OPEN

    model = load(tiny_bundle, device="cpu", threads=1)
    model.text_defaults = WRITTEN
    if request.param == "single tokens":
        inner = tokenizers.Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
        inner.add_tokens([tokenizers.AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
        model._tokenizer = Tokenizer(inner)
    return model
