"""Opening a bundle says what is wrong in one line; writing one is all or nothing."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import in_format_1
from recorded import recorded_vocabulary

from mmada_lite import ImageSettings, TextSettings, load
from mmada_lite.bundle import Bundle, BundleWriter
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.graph import WeightFile

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def pristine(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = golden / "llm" / "mha"
    return export_checkpoint(
        source, tmp_path_factory.mktemp("bundle") / "b", precision="fp32", vocabulary=recorded_vocabulary(source)
    )


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(pristine, tmp_path / "b"))


@pytest.fixture(scope="session")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def change(bundle: Path, edit: Change) -> None:
    content = json.loads((bundle / "bundle.json").read_text())
    edit(content)
    (bundle / "bundle.json").write_text(json.dumps(content))


def refused(bundle: Path, message: str, verify: str = "auto") -> None:
    with pytest.raises(Error, match=message) as caught:
        Bundle.open(bundle, verify=verify)
    assert "\n" not in str(caught.value)
    assert str(bundle) in str(caught.value)


def test_what_is_written_is_read(pristine: Path) -> None:
    bundle = Bundle.open(pristine, verify="full")
    assert (bundle.name, bundle.image, bundle.tokenizer_path) == ("mha", None, None)
    assert (bundle.architecture.n_layers, bundle.architecture.head_dim) == (2, 16)
    assert bundle.vocabulary.image_code_offset == 200
    assert bundle.graph_path("backbone").is_file()
    assert bundle.size == sum(path.stat().st_size for path in pristine.iterdir() if path.name != "bundle.json")
    with pytest.raises(Error, match="has no graph 'image_encoder'; it has embedder, "):
        bundle.graph_path("image_encoder")
    with pytest.raises(Error, match="verify is 'never'"):
        Bundle.open(pristine, verify="never")


def test_a_folder_that_is_no_bundle(golden: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such bundle folder")
    refused(tmp_path, "holds no bundle.json")
    refused(golden / "llm" / "mha", "is a checkpoint and not a bundle; run `mmada-lite export")


BROKEN: dict[str, tuple[Change, str]] = {
    "newer": (lambda c: c.update(format_version=99), "made by a newer mmada-lite .*pip install -U mmada-lite"),
    "newer, with new keys": (lambda c: c.update(format_version=3, shape=3), "made by a newer mmada-lite"),
    "another format": (lambda c: c.update(format="zip"), "does not describe a mmada-lite bundle"),
    "missing key": (lambda c: c.pop("graphs"), "the key 'graphs' is missing"),
    "unknown key": (lambda c: c.update(graph={}), "unknown key 'graph'; did you mean 'graphs'?"),
    "nested missing": (lambda c: c["architecture"].pop("d_model"), "architecture: the key 'd_model' is missing"),
    "nested unknown": (lambda c: c["architecture"].update(n_layer=1), "unknown key 'n_layer'; did you mean 'n_layers'?"),
    "wrong type": (lambda c: c["architecture"].update(n_heads="4"), "architecture.n_heads is '4'"),
    "no object": (lambda c: c.update(files=[]), "files is .* where an object is needed"),
    "no defaults": (lambda c: c.update(defaults=[]), r"bundle\.json: defaults is .* where an object is needed"),
    "no groups": (lambda c: c.update(quantization=[]), r"bundle\.json: quantization is .* where an object is needed"),
    "no graphs": (lambda c: c.update(graphs=[]), r"bundle\.json: graphs is .* where an object is needed"),
    "no special tokens": (lambda c: c["vocabulary"].pop("special"), "vocabulary: the key 'special' is missing"),
    "vocabulary": (lambda c: c["vocabulary"]["special"].update(mask=10**6), "special token 'mask' is 1000000"),
    "family": (lambda c: c.update(family="lumina"), "family is 'lumina', and this program knows mmada; it may be of a newer"),
    "need": (lambda c: c.update(needs=["two guidances"]), "the model needs 'two guidances', which this program does not have"),
    "needs": (lambda c: c.update(needs="none"), "needs is 'none'"),
    "knows": (lambda c: c.update(knows=[]), "knows is .* where an object is needed"),
    "old setting": (lambda c: c["defaults"]["text"].update(law="sensible"), "'law' is called 'mode' now"),
    "flat setting": (lambda c: c["defaults"]["image"].update(refresh=2), "'refresh' stands in 'acceleration'"),
    "unknown row": (lambda c: c["rows"].update(pint=[]), "unknown row 'pint'; did you mean 'paint'"),
    "missing row": (lambda c: c["rows"].pop("chat"), "the row 'chat' is missing"),
    "no unconditional": (lambda c: c["rows"].pop("unconditional"), "the row 'unconditional' is missing"),
    "special of a row": (lambda c: c["rows"]["chat"].insert(0, "boss"), "unknown special id 'boss'; did you mean 'bos'"),
    "slot of a row": (lambda c: c["rows"]["paint"].remove("{prompt}"), "'paint' must hold {prompt}, {codes}, each once"),
    "slot twice": (lambda c: c["rows"]["chat"].append("{masks}"), "'chat' must hold {messages}, {masks}, each once"),
    "mask within": (lambda c: c["rows"]["chat"].append("eos"), "the row 'chat' must end with {masks}"),
    "element": (lambda c: c["rows"]["chat"].insert(0, 7), "the row 'chat' has an element 7"),
    "no list": (lambda c: c["rows"].update(think="bos"), "the row 'think' is 'bos'; a list"),
    "ends": (lambda c: c["rows"]["paint"].append("eos"), "paint, paint_thought, unconditional end differently"),
    "setting": (lambda c: c["defaults"]["text"].update(step=3), "unknown setting 'step'; did you mean 'steps'?"),
    "setting's value": (lambda c: c["defaults"]["image"].update(steps=0), "defaults.image: steps is 0"),
    "unlisted graph": (lambda c: c["graphs"]["backbone"].update(file="x.onnx"), "'x.onnx' of graph 'backbone' is not listed"),
    "escaping path": (lambda c: c["files"].update({"../x": {"size": 1, "sha256": ""}}), "lies outside the bundle"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_changed_manifest(bundle: Path, fault: str) -> None:
    edit, message = BROKEN[fault]
    change(bundle, edit)
    refused(bundle, message)


def test_a_picture_that_fills_a_row_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    change(bundle, lambda c: c["architecture"].update(max_sequence_length=17))
    assert Bundle.open(bundle).image is not None
    change(bundle, lambda c: c["architecture"].update(max_sequence_length=16))
    refused(bundle, "has 16 codes, and max_sequence_length is 16")


def test_integers_of_seven_bits_are_eight_bits_that_leave_one(bundle: Path) -> None:
    for bits, block, fits in ((7, None, True), (8, 32, True), (6, None, False), (7, 32, False)):
        change(
            bundle, lambda c, new={"format": "int8", "bits": bits, "block": block}: c["quantization"]["backbone"].update(new)
        )
        if fits:
            assert Bundle.open(bundle).quantization["backbone"].bits == bits
        else:
            refused(bundle, "quantization.backbone is int8, and its other keys are not those of this format")


def test_the_manifest_is_written_to_be_read_by_people(pristine: Path) -> None:
    lines = (pristine / "bundle.json").read_text(encoding="utf-8").splitlines()
    assert ' "format_version": 2,' in lines


OLD_TEXT = {  # format 1, key by key as it was written when these were the settings' names
    "answer_length": 9,
    "steps": 9,
    "block_length": 3,
    "temperature": 0.0,
    "guidance": 0.5,
    "order": "low_confidence",
    "cache": "dual",
    "threshold": 0.5,
    "law": "sensible",
    "select": "margin",
    "early_stop": 1.0,
    "reach": 2,
    "refresh": 4,
    "drift": 0.25,
    "suffix": 0,
    "settle": 3,
    "thought_first": True,
}
OLD_IMAGE = {
    "steps": 8,
    "guidance": 2.0,
    "schedule": "pow2",
    "temperature": 1.5,
    "sampling_temperature": 0.5,
    "law": "reference",
    "refresh": 3,
    "shortlist": 1.5,
    "guidance_from": 0.1,
    "guidance_to": 0.9,
    "unconditional_every": 2,
}


def test_format_1_opens_as_it_did(tiny_bundle: Path, tmp_path: Path) -> None:
    """Every old name means what it meant, and the model that it describes answers and draws as its copy in format 2."""
    folder = in_format_1(tiny_bundle, tmp_path / "old")
    old, new = load(folder, device="cpu"), load(tiny_bundle, device="cpu")
    assert (old.text_defaults, old.image_defaults) == (new.text_defaults, new.image_defaults)
    assert old.chat("a b").result().ids.tolist() == new.chat("a b").result().ids.tolist()
    assert (old.paint("a b").result().codes == new.paint("a b").result().codes).all()
    change(folder, lambda c: (c["defaults"].update(text=OLD_TEXT, image=OLD_IMAGE), c.pop("target"), c.pop("tensors")))
    bundle = Bundle.open(folder)
    assert (bundle.family, bundle.knows, bundle.target, bundle.tensors) == ("mmada", {}, "cpu", {})
    assert bundle.text_defaults == TextSettings(9, 9, 3, guidance=0.5).replace(
        cache="dual",
        threshold=0.5,
        select="margin",
        early_stop=1.0,
        lookahead=2,
        refresh=4,
        refresh_drift=0.25,
        suffix_window=0,
        kv_commit_every=3,
        thought_first=True,
    )
    assert bundle.image_defaults == ImageSettings(8, 2.0, "pow2", 1.5, 0.5, "reference").replace(
        refresh=3, candidate_ratio=1.5, guidance_from=0.1, guidance_to=0.9, unconditional_every=2
    )


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda c: c.update(family="mmada"), "unknown key 'family'"),
        (lambda c: c["defaults"].update(text={"reech": 2}), "defaults.text: unknown setting 'reech'; did you mean 'reach'"),
        (lambda c: c["defaults"].update(text={"lookahead": 2}), "unknown setting 'lookahead'; it is 'reach' in format 1"),
        (lambda c: c["defaults"].update(text={"law": "default"}), "law is 'default'; use one of sensible, reference"),
        (lambda c: c["defaults"].update(text=3), "defaults.text is 3 where an object is needed"),
    ],
)
def test_a_fault_of_format_1_names_its_key(tiny_bundle: Path, tmp_path: Path, edit: Change, line: str) -> None:
    folder = in_format_1(tiny_bundle, tmp_path / "old")
    change(folder, edit)
    refused(folder, line)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\xff"])
def test_a_damaged_manifest(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text, encoding="latin-1")
    refused(bundle, "is damaged|does not describe")


def test_missing_truncated_and_edited_files(bundle: Path) -> None:
    weights = bundle / "weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    refused(bundle, "weights.bin is truncated: ")
    weights.write_bytes(data[:4096] + b"\x01" + data[4097:])
    refused(bundle, "weights.bin was edited or damaged: its sha256")
    weights.unlink()
    refused(bundle, "weights.bin: this file of the bundle is missing")


def test_a_large_bundle_is_hashed_only_when_asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[5000] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    monkeypatch.setattr("mmada_lite.bundle.HASHED_UP_TO", 1000)
    assert Bundle.open(bundle).name == "mha"
    refused(bundle, "its sha256", verify="full")


def writing(target: Path, pristine: Path, *, force: bool = False) -> Path:
    """Write a bundle like the pristine one, named "new"."""
    content = json.loads((pristine / "bundle.json").read_text())
    description = {key: value for key, value in content.items() if key not in ("format", "format_version", "files")}
    with BundleWriter(target, force=force) as writer:
        for name in content["files"]:
            shutil.copyfile(pristine / name, writer.folder / name)
        return writer.finish(description | {"name": "new"})


def test_an_existing_target_is_replaced_only_by_force(bundle: Path, pristine: Path) -> None:
    with pytest.raises(Error, match=r"exists already; .* --force"):
        writing(bundle, pristine)
    assert Bundle.open(bundle).name == "mha"
    assert Bundle.open(writing(bundle, pristine, force=True), verify="full").name == "new"
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]


def test_force_replaces_nothing_but_bundles(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"holds no bundle\.json, so it is not replaced even with --force"):
        writing(tmp_path / "letters", pristine, force=True)
    with pytest.raises(Error, match="is a file"):
        writing(tmp_path / "file", pristine, force=True)
    with pytest.raises(Error, match="cannot write here"):
        writing(tmp_path / "file" / "b", pristine)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dear.txt", "file", "letters"]


def test_a_link_is_followed_and_kept(bundle: Path, pristine: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle)
    writing(bundle.parent / "link", pristine, force=True)
    assert (bundle.parent / "link").is_symlink()
    assert Bundle.open(bundle.parent / "link").name == "new"


def test_a_writer_that_fails_leaves_the_old_bundle(bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt), BundleWriter(bundle, force=True) as writer:  # noqa: PT012
        (writer.folder / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt
    assert Bundle.open(bundle, verify="full").name == "mha"
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Error, match="the key 'name' is missing"), BundleWriter(tmp_path / "b") as writer:
        writer.finish({})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_replacement_is_undone(bundle: Path, pristine: Path, gone: int) -> None:
    """Cut off between the two renames, the old bundle lies aside: opening or writing brings it back."""
    aside = bundle.rename(bundle.parent / f".b.replaced-{gone}")
    assert Bundle.open(bundle).name == "mha"
    bundle.rename(aside)
    with pytest.raises(Error, match="exists already"):
        writing(bundle, pristine)
    shutil.copytree(bundle, aside)
    shutil.copytree(bundle, bundle.parent / f".b.partial-{gone}")
    assert Bundle.open(writing(bundle, pristine, force=True)).name == "new"
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]


def test_another_process_at_work_is_left_alone(bundle: Path, pristine: Path) -> None:
    (bundle.parent / f".b.partial-{os.getppid()}").mkdir()
    with pytest.raises(Error, match="is being written by another process"):
        writing(bundle, pristine, force=True)
    assert (bundle.parent / f".b.partial-{os.getppid()}").is_dir()
    assert Bundle.open(bundle, verify="full").name == "mha"


def test_a_number_does_not_make_a_process(bundle: Path, pristine: Path) -> None:
    """A leftover of long ago whose process's number another one has now, as after a restart in a container."""
    left = bundle.parent / f".b.partial-{os.getppid()}"
    left.mkdir()
    os.utime(left, (0, 0))
    writing(bundle, pristine, force=True)
    assert not left.exists()


def test_a_failing_second_rename_brings_the_old_back(bundle: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(Error, match="cannot be put in its place"):
        writing(bundle, pristine, force=True)
    assert Bundle.open(bundle, verify="full").name == "mha"
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]


def test_too_little_space_is_said_before_any_work(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = golden / "llm" / "mha"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1_000_000))
    with pytest.raises(Error, match=r"needs 8\.\d MB and the disk has 1\.0 MB free; free 7\.\d MB or choose another disk"):
        export_checkpoint(source, tmp_path / "b", vocabulary=recorded_vocabulary(source))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_runs_full_leaves_nothing(golden: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = golden / "llm" / "mha"
    before = hashlib.sha256((bundle / "weights.bin").read_bytes()).digest()
    written: list[int] = []
    real = WeightFile._write_at

    def write(self: WeightFile, offset: int, values: Any) -> None:
        written.append(offset)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, offset, values)

    monkeypatch.setattr(WeightFile, "_write_at", write)
    with pytest.raises(Error, match="the disk is full; nothing was kept"):
        export_checkpoint(source, bundle, vocabulary=recorded_vocabulary(source), force=True)
    assert hashlib.sha256((bundle / "weights.bin").read_bytes()).digest() == before
    assert [path.name for path in bundle.parent.iterdir()] == ["b"]
