"""Three named speeds: what each changes in a bundle's own settings for texts and for pictures. Nothing else is here.

`mmada-lite bench presets` measures what each costs in quality and gains in time; docs/decoding.md has the table, and what
else was tried.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mmada_lite.errors import Error
from mmada_lite.settings import ImageSettings, TextSettings

# speed -> changes of the text settings, changes of the image settings
_NO_PICTURE_CHANGE: Mapping[str, Any] = MappingProxyType({})
_LIGHT_STEPS: Mapping[str, Any] = MappingProxyType({"refresh": 2, "shortlist": 2.0, "unconditional_every": 2})
PRESETS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = MappingProxyType(
    {
        "exact": (MappingProxyType({}), _NO_PICTURE_CHANGE),
        "balanced": (
            MappingProxyType(
                {
                    "cache": "dual",
                    "threshold": 0.9,
                    "entropy_bound": None,
                    "early_stop": 1.0,
                    "thought_first": True,
                    "refresh": 2,
                }
            ),
            _LIGHT_STEPS,
        ),
        "fast": (
            MappingProxyType(
                {
                    "cache": "dual",
                    "threshold": 0.8,
                    "entropy_bound": None,
                    "early_stop": 1.0,
                    "suffix": 8,
                    "thought_first": True,
                    "refresh": 2,
                }
            ),
            _LIGHT_STEPS,
        ),
    }
)


def with_speed(speed: str, text: TextSettings, image: ImageSettings) -> tuple[TextSettings, ImageSettings]:
    """Settings with those of a speed in them: "exact" (as they are), "balanced" or "fast". Its suffix is a block's length where
    that is more; caches are renewed after a quarter of a block's length where that is more. Raises Error for another name,
    and where a change contradicts what is set."""
    if speed not in PRESETS:
        raise Error(f"no speed is called {speed!r}; use one of {', '.join(PRESETS)}")
    text_changes, image_changes = PRESETS[speed]
    changed = replace(text, **text_changes)
    if "suffix" in text_changes:
        changed = replace(changed, suffix=max(text_changes["suffix"], text.block_length))
    if "refresh" in text_changes:
        changed = replace(changed, refresh=max(text_changes["refresh"], text.block_length // 4))
    return changed, replace(image, **image_changes)
