"""The emoji icons as arrays: rendered once from the fetched packages into one .npz file, then read from it by role. Knows
the split into training, validation and test styles; knows nothing of captions or models.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.signs import render_signs
from mmada_lite.train.data.sources import ICON_SIZE, STYLES, IconSet, render_all, styles

log = logging.getLogger("mmada_lite")


@dataclass(frozen=True, slots=True)
class ConceptIcons:
    """The icons of the concepts in the styles of one role."""

    style_names: tuple[str, ...]
    pixels: NDArray[np.uint8]  # [styles, concepts, S, S, 4] straight alpha


def render_concepts(packages: Path, file: Path) -> None:
    """Render every concept in every style into `file`, an .npz with one array [concepts, S, S, 4] a style.

    Where a style for training lacks a concept, the first style's icon stands in; a style that measures must have them all.
    """
    sets = {style.name: IconSet(packages, style) for style in STYLES}
    first = sets[STYLES[0].name]
    arrays = {}
    for style in STYLES:
        if style.role == "sign":
            continue
        icons, rendered = sets[style.name], []
        for concept in CONCEPTS:
            lent = style.role == "train" and concept.icon_in(style.name) not in icons
            rendered.append(
                first.render(concept.icon_in(STYLES[0].name)) if lent else icons.render(concept.icon_in(style.name))
            )
        arrays[style.name] = np.stack(rendered)
    _save(file, arrays | render_signs(packages, {style.name: arrays[style.name] for style in styles("train")}))


def render_library(packages: Path, file: Path, role: str, size: int = ICON_SIZE, every: int = 1) -> None:
    """Render all icons (of which each `every`-th) of a role's styles into `file`: what the image tokenizer learns from."""
    arrays = {}
    for style in styles(role):
        pixels = [picture for index, (_, picture) in enumerate(render_all(packages, style, size)) if index % every == 0]
        arrays[style.name] = np.stack(pixels)
        log.info("%s: %d icons", style.name, len(pixels))
    _save(file, arrays)


def _save(file: Path, arrays: dict[str, NDArray[np.uint8]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    partial.replace(file)


def load_concepts(file: Path, role: str) -> ConceptIcons:
    """The concept icons of a role: train, sign, validation or test."""
    data = _read(file)
    names = tuple(style.name for style in styles(role))
    if any(name not in data or len(data[name]) != len(CONCEPTS) for name in names):
        raise Error(f"{file} does not hold {len(CONCEPTS)} icons of each style: run `python -m mmada_lite.train render` again")
    return ConceptIcons(names, np.stack([data[name] for name in names]))


def load_library(file: Path) -> NDArray[np.uint8]:
    """All icons [N, S, S, 4] of a library file."""
    return np.concatenate(list(_read(file).values()))


def _read(file: Path) -> dict[str, NDArray[np.uint8]]:
    if not file.exists():
        raise Error(f"{file} is missing: run `python -m mmada_lite.train render` first")
    try:
        with np.load(file) as data:
            return dict(data)
    except Exception as error:  # a cut file is a zip error, a foreign one a ValueError
        raise Error(f"{file} cannot be read ({str(error)[:80]}): run `python -m mmada_lite.train render` again") from error
