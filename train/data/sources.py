"""Where the pictures come from: the icon packages, their pinned versions, roles and licences, how they are fetched
(`npm pack NAME@VERSION`, nothing else) and rendered (resvg) to RGBA arrays. Knows nothing of concepts, captions or models.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.errors import Error

_log = logging.getLogger("mmada_lite")
ICON_SIZE = 96  # pixels of a rendered icon, a margin over the 64 px pictures so that scaling up stays sharp


@dataclass(frozen=True, slots=True)
class Style:
    """One icon set: its npm package, the version we pin, and what we may use it for."""

    name: str
    version: str
    role: str  # train, sign (recognized, never drawn like), validation or test; share-alike sets are never trained on
    licence: str  # SPDX, as in the package's info.json
    author: str

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.name}"

    @property
    def folder(self) -> str:
        return f"iconify-json-{self.name}-{self.version}"


STYLES: tuple[Style, ...] = (
    Style("twemoji", "1.2.5", "train", "CC-BY-4.0", "Twitter"),
    Style("noto", "1.2.9", "train", "Apache-2.0", "Google Inc"),
    Style("noto-v1", "1.2.5", "train", "Apache-2.0", "Google Inc"),
    Style("fluent-emoji", "1.2.7", "train", "MIT", "Microsoft Corporation"),
    Style("fluent-emoji-flat", "1.2.6", "train", "MIT", "Microsoft Corporation"),
    Style("fxemoji", "1.2.2", "train", "Apache-2.0", "Mozilla"),
    Style("streamline-emojis", "1.2.4", "train", "CC-BY-4.0", "Streamline"),
    Style("fluent-emoji-high-contrast", "1.2.6", "sign", "MIT", "Microsoft Corporation"),
    Style("mdi", "1.2.3", "sign", "Apache-2.0", "Pictogrammers"),
    Style("game-icons", "1.2.4", "sign", "CC-BY-3.0", "GameIcons"),
    Style("ph", "1.2.2", "sign", "MIT", "Phosphor Icons"),
    Style("tabler", "1.2.41", "sign", "MIT", "Paweł Kuna"),
    Style("icon-park", "1.2.4", "sign", "Apache-2.0", "ByteDance"),
    Style("fa6-solid", "1.2.4", "sign", "CC-BY-4.0", "Dave Gandy"),
    Style("emojione", "1.2.3", "validation", "CC-BY-4.0", "Emoji One"),
    Style("openmoji", "1.2.29", "test", "CC-BY-SA-4.0", "OpenMoji"),
    Style("emojione-v1", "1.2.3", "test", "CC-BY-SA-4.0", "Emoji One"),
)


def styles(role: str) -> list[Style]:
    """The styles of a role: train, sign, validation or test."""
    return [style for style in STYLES if style.role == role]


def fetch(cache: Path) -> None:
    """Bring every package into `cache` with `npm pack`, unless its folder is there already."""
    cache.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        folder = cache / style.folder
        if (folder / "icons.json").exists():
            continue
        _npm_pack(f"{style.package}@{style.version}", cache)
        _unpack(cache / f"{style.folder}.tgz", folder)


def _npm_pack(package: str, cache: Path) -> None:
    if shutil.which("npm") is None:
        raise Error(f"npm is not installed: it fetches {package}; install Node.js or unpack the package into {cache}")
    done = subprocess.run(["npm", "pack", package, "--silent"], cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Error(f"npm pack {package} failed in {cache}: {done.stderr.strip()[-300:]}")


def _unpack(archive: Path, folder: Path) -> None:
    """Take the three files we need out of the package, into a folder that appears only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    with tarfile.open(archive) as tar:
        for name in ("icons.json", "info.json", "package.json"):
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise Error(f"{archive} holds no {name}: delete it and fetch again")
            (partial / name).write_bytes(member.read())
    partial.rename(folder)


class IconSet:
    """The icons of one style: names, and pixels on demand."""

    def __init__(self, cache: Path, style: Style) -> None:
        file = cache / style.folder / "icons.json"
        if not file.exists():
            raise Error(f"{file} is missing: run `python -m mmada_lite.train fetch --cache {cache}` first")
        data = json.loads(file.read_text(encoding="utf-8"))
        self.style = style
        self._icons: dict[str, dict] = data["icons"]
        self._aliases: dict[str, dict] = data.get("aliases", {})
        self._size = (int(data.get("width", 16)), int(data.get("height", 16)))

    def names(self) -> list[str]:
        """Names of drawn icons; aliases and the variants of skin tone are left out."""
        tones = ("-dark", "-light", "-medium")
        return sorted(name for name in self._icons if "skin-tone" not in name and not name.endswith(tones))

    def __contains__(self, name: str) -> bool:
        return name in self._icons or name in self._aliases

    def svg(self, name: str) -> str:
        """The icon as a stand-alone SVG document."""
        if name in self._aliases:
            return self.svg(self._aliases[name]["parent"])
        if name not in self._icons:
            raise Error(f"style {self.style.name} has no icon {name!r}")
        icon = self._icons[name]
        width, height = icon.get("width", self._size[0]), icon.get("height", self._size[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {names} viewBox="{box}">{icon["body"]}</svg>'

    def render(self, name: str, size: int = ICON_SIZE) -> NDArray[np.uint8]:
        """RGBA pixels [size, size, 4], straight alpha; an icon that is not square is centred."""
        return render_svg(self.svg(name), size)


def render_svg(svg: str, size: int) -> NDArray[np.uint8]:
    """Rasterize an SVG document to RGBA [size, size, 4], straight alpha."""
    try:
        import resvg_py
    except ImportError as error:
        raise Error('rendering icons needs resvg: pip install "mmada-lite[train]"') from error
    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (size, size):
        picture.thumbnail((size, size), Image.Resampling.BICUBIC)
        square = Image.new("RGBA", (size, size))
        square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = square
    return np.asarray(picture, dtype=np.uint8)


def render_all(cache: Path, style: Style, size: int = ICON_SIZE) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Every icon of a style that can be drawn and is not empty, by name."""
    icons = IconSet(cache, style)
    for name in icons.names():
        try:
            pixels = icons.render(name, size)
        except ValueError as error:  # some packages hold a few documents that the renderer refuses
            _log.warning("style %s: the icon %s cannot be drawn and is left out (%s)", style.name, name, error)
            continue
        if int(pixels[..., 3].astype(np.int64).sum()) > 255 * size * size // 50:
            yield name, pixels
