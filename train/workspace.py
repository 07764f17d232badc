"""The working folder of a training: which file lies where, and which of them there are. Knows no training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from mmada_lite.errors import Error
from mmada_lite.train.loop import whole_state


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where the files of a training lie, under one folder."""

    root: Path

    @property
    def packages(self) -> Path:
        return self.root / "packages"

    @property
    def concepts(self) -> Path:
        return self.root / "concepts.npz"

    @property
    def library(self) -> Path:
        return self.root / "library-train.npz"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer.json"

    @property
    def vq(self) -> Path:
        return self.root / "vq"

    @property
    def vq_model(self) -> Path:
        return self.root / "vq" / "model"

    @property
    def sharp(self) -> Path:
        return self.root / "vq-sharp"

    @property
    def sharp_model(self) -> Path:
        """The image tokenizer after `sharpen`: the same encoder, a better decoder."""
        return self.root / "vq-sharp" / "model"

    @property
    def judge(self) -> Path:
        return self.root / "judge"

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    @property
    def stage_one(self) -> Path:
        return self.root / "stage-one"

    @property
    def stage_two(self) -> Path:
        return self.root / "stage-two"

    @property
    def policy(self) -> Path:
        return self.root / "policy"

    @property
    def best_vq(self) -> Path:
        """The image tokenizer to decode with: the sharpened one where there is one."""
        return self.sharp_model if self.sharp_model.exists() else self.vq_model

    def stage(self, name: str) -> Path:
        """The folder of a stage: one, two, or a run of stage three (seed-0); last is two, or one where that is all there is.
        Raises Error for one that was not trained."""
        known = {"one": self.stage_one, "two": self.stage_two}
        known |= {folder.name: folder for folder in sorted(self.policy.glob("seed-*"))}
        trained = {key: folder for key, folder in known.items() if whole_state(folder)}
        if name == "last":
            name = next((latest for latest in ("two", "one") if latest in trained), name)
        if name not in trained:
            raise Error(f"no stage {name!r} was trained in {self.root}; there are {', '.join(trained) or 'none'}")
        return trained[name]

    def speaks_its_own(self) -> bool:
        """Whether a stage, or a run of a comparison, was trained here, which the folder's tokenizer.json belongs to."""
        runs = (self.policy.glob("*"), (self.root / "gains").glob("*/*"), (self.root / "synergy").glob("*/*"))
        return any(whole_state(folder) for folder in (self.stage_one, self.stage_two, *chain(*runs)))

    @property
    def checkpoint(self) -> Path:
        """The finished model in the Hugging Face layout."""
        return self.root / "emoji"
