"""Bundles that tests make: recorded models exported, and copies of a bundle with one file exchanged."""

import hashlib
import json
import shutil
from pathlib import Path

from recorded import recorded_vocabulary


def golden_bundle(checkpoint: Path, target: Path) -> Path:
    """A recorded model as a bundle in float32; made once."""
    from mmada_lite.export.bundle import export_checkpoint

    if not target.is_dir():
        export_checkpoint(checkpoint, target, precision="fp32", vocabulary=recorded_vocabulary(checkpoint))
    return target


def with_file(bundle: Path, target: Path, name: str, content: bytes) -> Path:
    """A copy of a bundle in which one file is another, listed as such."""
    shutil.copytree(bundle, target)
    (target / name).write_bytes(content)
    manifest = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (target / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target


def in_format_1(bundle: Path, target: Path) -> Path:
    """A copy of a bundle as format 1 describes it, with the settings that every host of it reads."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "bundle.json").read_text(encoding="utf-8"))
    for key in ("family", "needs", "knows", "rows"):
        del manifest[key]
    modes, kinds = {"default": "sensible", "reference": "reference"}, {"text": ("cache", "threshold"), "image": ()}
    for kind, always in kinds.items():
        settings = manifest["defaults"][kind]
        saving = {"cache": "none", "threshold": None} | settings.pop("acceleration")
        settings |= {"law": modes[settings.pop("mode")]} | {name: saving[name] for name in always}
    (target / "bundle.json").write_text(json.dumps(manifest | {"format_version": 1}), encoding="utf-8")
    return target
