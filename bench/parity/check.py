"""`mmada-lite check FOLDER`, in full `mmada-lite bench check`: every recorded case of a folder in the golden format, through
torch and through exported graphs.

It finds the cases, builds each model once per engine, and yields comparisons. The comparing itself is `passes` (single forward
passes), `replay` (decodings) and `training` (prompts, losses, the policy objective).
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.parity import passes, training
from mmada_lite.bench.parity.replay import Case, Comparison, replay_cache, replay_image, replay_text
from mmada_lite.bundle import Bundle
from mmada_lite.contracts import read_json
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint, export_codec
from mmada_lite.files import require_readable
from mmada_lite.images import Codec
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

ENGINES = ("torch", "onnx")
_REPLAYS: dict[str, Callable[[Denoiser, Case], Iterator[Comparison]]] = {
    "text": replay_text,
    "mmu": replay_text,
    "cache": replay_cache,
    "t2i": replay_image,
}
SECTIONS = ("llm", *_REPLAYS, "vq", "image", "prompting", "loss", "rl")


@dataclass(frozen=True, slots=True)
class Checked:
    """One comparison and the engine it was made with: torch, onnx, or the project's own code without a model ("numpy")."""

    engine: str
    comparison: Comparison


@dataclass(slots=True)
class _Models:
    """Each recorded model once per engine; graphs are exported in fp32 into a temporary folder."""

    folder: Path
    scratch: Path
    denoisers: dict[tuple[str, str], Denoiser] = field(default_factory=dict)

    def denoiser(self, engine: str, name: str) -> Denoiser:
        if (engine, name) not in self.denoisers:
            build = self._torch if engine == "torch" else self._onnx
            self.denoisers[engine, name] = build(name)
        return self.denoisers[engine, name]

    def _torch(self, name: str) -> Denoiser:
        from mmada_lite.train.denoiser import TorchDenoiser
        from mmada_lite.train.model import MMaDA

        vocabulary = self._vocabulary(name)
        codes = slice(vocabulary.image_code_offset, vocabulary.image_code_offset + vocabulary.codebook_size)
        return TorchDenoiser(MMaDA.load(self.folder / name), codes)

    def _onnx(self, name: str) -> Denoiser:
        target = self.scratch / name.replace("/", "-")
        bundle = Bundle.open(export_checkpoint(self.folder / name, target, precision="fp32", vocabulary=self._vocabulary(name)))
        device = choose_device("cpu")
        graphs = ("embedder", "backbone", "text_head", "image_head")
        sessions = {graph: open_session(bundle.graph_path(graph), device) for graph in graphs}
        shape = bundle.architecture
        return OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim)

    def _vocabulary(self, name: str) -> Vocabulary:
        """From case.json; ids that decoding never reads (chat headers) are not recorded and stand as the end of text."""
        info = read_json(self.folder / name / "case.json")
        ids = info["token_ids"]
        special = {key: ids.get(key, ids["eos"]) for key in SpecialTokens.__dataclass_fields__}
        return Vocabulary(SpecialTokens(**special), info["image_code_offset"], ids["codebook"], info["vocab_size"])


def check_folder(folder: Path, engines: Sequence[str] = ENGINES) -> Iterator[Checked]:
    """Compare everything that a folder records; yields as it goes. Sections it lacks are passed over.

    Raises Error when the folder is missing or holds no case, when a case is broken, or when torch is asked for and absent.
    """
    sections = [section for section in SECTIONS if (folder / section).is_dir()]
    if not folder.is_dir():
        raise Error(f"no folder at {folder}; give one in the format of tests/golden/README.md")
    if not sections:
        raise Error(f"{folder} holds none of {', '.join(SECTIONS)}; give a folder in the format of tests/golden/README.md")
    for path in folder.rglob("*"):
        if not path.is_dir():
            require_readable(path)  # a pipe would be waited for
    if "torch" in engines and find_spec("torch") is None:
        raise Error('the torch reference needs torch; pip install "mmada-lite[train]", or check with --engine onnx')
    with tempfile.TemporaryDirectory(prefix="mmada-lite-check-") as scratch:
        models = _Models(folder, Path(scratch))
        for section in sections:
            yield from _section(section, models, engines)


def _section(section: str, models: _Models, engines: Sequence[str]) -> Iterator[Checked]:
    root = models.folder / section
    if section == "t2i" and (root / passes.TABLE).is_file():
        yield from _guarded(root / passes.TABLE, lambda: (Checked("numpy", c) for c in passes.compare_schedules(section, root)))
    if section in ("vq", "image", "prompting", "loss", "rl"):
        yield from _guarded(root, lambda: _section_without_cases(section, models, engines))
        return
    for case in sorted(path for path in root.iterdir() if path.is_dir()):
        name = f"{section}/{case.name}"
        for engine in engines:
            yield from _guarded(case, lambda case=case, name=name, engine=engine: _case(models, section, case, name, engine))  # type: ignore[misc]


def _case(models: _Models, section: str, folder: Path, name: str, engine: str) -> Iterator[Checked]:
    if section == "llm":
        comparisons = passes.compare_logits(models.denoiser(engine, name), name, folder)
        yield from (Checked(engine, c) for c in comparisons)
        if engine == "torch":
            yield from (Checked(engine, c) for c in passes.compare_torch_states(name, folder))
        return
    case = Case.load(folder, name)
    denoiser = models.denoiser(engine, case.info["model"])
    yield from (Checked(engine, c) for c in _REPLAYS[section](denoiser, case))


def _section_without_cases(section: str, models: _Models, engines: Sequence[str]) -> Iterator[Checked]:
    root = models.folder / section
    if section == "image":
        yield from (Checked("numpy", c) for c in passes.compare_pictures(section, root))
    if section == "vq":
        if "torch" in engines:
            yield from (Checked("torch", c) for c in passes.compare_torch_vq(section, root))
        if "onnx" in engines:
            yield from (Checked("onnx", c) for c in passes.compare_graph_vq(section, root, _codec(root, models.scratch)))
    if section == "prompting":
        yield from (Checked("numpy", c) for c in training.compare_prompts(section, root))
    if section == "loss" and "torch" in engines:
        yield from (Checked("torch", c) for c in training.compare_losses(section, root, models.folder))
    if section == "rl" and "torch" in engines:
        yield from (Checked("torch", c) for c in training.compare_policy(section, root, models.folder))
        if (root / "ends.json").exists():
            yield from (Checked("torch", c) for c in training.compare_ends(section, root, models.folder))


def _codec(root: Path, scratch: Path) -> Codec:
    paths = export_codec(root, scratch / "vq")
    device = choose_device("cpu")
    return Codec(open_session(paths["image_encoder"], device), open_session(paths["image_decoder"], device), 0, 1)


def _guarded(recording: Path, compare: Callable[[], Iterator[Checked]]) -> Iterator[Checked]:
    """A broken recording is the user's to mend, so it becomes one line that names it."""
    try:
        yield from compare()
    except Error:
        raise
    except (KeyError, IndexError, TypeError, OSError, ValueError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Error(
            f"the recording {recording} is not complete ({reason}); see tests/golden/README.md for its format"
        ) from error


def report(folder: Path, engine: str | None, *, lines: bool = True) -> int:
    """Compare by one engine, or by all, and print a line each, and a line of JSON last. Returns 1 where one falls short."""
    results: list[Checked] = []
    for result in check_folder(folder, ENGINES if engine is None else (engine,)):
        results.append(result)
        if lines:
            print(_line(result), flush=True)
    summary = as_json(results)
    print(json.dumps(summary), flush=True)
    return 1 if summary["failed"] or not results else 0


def _line(checked: Checked) -> str:
    """`ok    cache/mha_dual_steps [onnx] ids: 0 (at most 0)`."""
    comparison = checked.comparison
    verdict = "ok   " if comparison.passed else "FALLS SHORT"
    measured = f"{comparison.difference:.3g} (at most {comparison.allowed:.3g})"
    return f"{verdict} {comparison.name} [{checked.engine}] {comparison.what}: {measured}"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as a command. 0, 1 where a case falls short, or 2 after a fault of the user."""
    parser = Parser(prog="mmada-lite bench check", description="Recorded cases of the reference, compared.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="recorded cases in the format of tests/golden/README.md")
    parser.add_argument("--engine", choices=ENGINES, help="compare this alone (default: both)")

    def compare() -> int:
        options = parser.parse_args(argv)
        return report(options.folder, options.engine)

    return exit_code(compare)


def as_json(results: Sequence[Checked]) -> dict[str, Any]:
    """The closing line: how much passed, and what did not."""
    failed = [f"{r.comparison.name} [{r.engine}] {r.comparison.what}" for r in results if not r.comparison.passed]
    return {"compared": len(results), "passed": len(results) - len(failed), "failed": failed}


if __name__ == "__main__":
    sys.exit(main())
