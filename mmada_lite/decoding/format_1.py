"""What format 1 of bundle.json calls the settings, in one table a class, and its settings as format 2 says them.

Values are not checked here. The names are also those that programs once used: `RENAMED` tells who still does.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mmada_lite.errors import Error, did_you_mean

Keys = Mapping[str, str]  # key in the file -> where the setting is
TEXT: Keys = MappingProxyType(
    {
        "answer_length": "answer_length",
        "steps": "steps",
        "block_length": "block_length",
        "temperature": "temperature",
        "guidance": "guidance",
        "order": "order",
        "cache": "acceleration.cache",
        "threshold": "acceleration.threshold",
        "law": "mode",
        "select": "acceleration.select",
        "entropy_bound": "acceleration.entropy_bound",
        "early_stop": "acceleration.early_stop",
        "reach": "acceleration.lookahead",
        "refresh": "acceleration.refresh",
        "drift": "acceleration.refresh_drift",
        "suffix": "acceleration.suffix_window",
        "draft": "acceleration.speculative_steps",
        "settle": "acceleration.kv_commit_every",
        "thought_first": "acceleration.thought_first",
    }
)
IMAGE: Keys = MappingProxyType(
    {
        "steps": "steps",
        "guidance": "guidance",
        "schedule": "schedule",
        "temperature": "temperature",
        "sampling_temperature": "sampling_temperature",
        "law": "mode",
        "refresh": "acceleration.refresh",
        "shortlist": "acceleration.candidate_ratio",
        "guidance_from": "acceleration.guidance_from",
        "guidance_to": "acceleration.guidance_to",
        "unconditional_every": "acceleration.unconditional_every",
    }
)
MODES: Mapping[str, str] = MappingProxyType({"sensible": "default", "reference": "reference"})


def _names(keys: Keys) -> dict[str, str]:
    """Key in the file -> the setting's name, without its layer."""
    return {key: path.rpartition(".")[2] for key, path in keys.items()}


RENAMED: Mapping[str, str] = MappingProxyType({old: new for old, new in (_names(TEXT) | _names(IMAGE)).items() if old != new})


def read(keys: Keys, content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings of format 1 as format 2 says them. Raises Error for an unknown key, which names the right or the nearest one."""
    names = _names(keys)
    for key in content:
        if key not in names:
            old = next((old for old, new in names.items() if new == key), None)
            hint = (
                did_you_mean(key, names, f"the settings are {', '.join(names)}")
                if old is None
                else f"it is {old!r} in format 1"
            )
            raise Error(f"{where}: unknown setting {key!r}; {hint}")
    values = {keys[key]: value for key, value in content.items()}
    if "mode" in values:
        if values["mode"] not in tuple(MODES):
            raise Error(f"{where}: law is {values['mode']!r}; use one of {', '.join(MODES)}")
        values["mode"] = MODES[values["mode"]]
    nested = {path.rpartition(".")[2]: value for path, value in values.items() if "." in path}
    return {path: value for path, value in values.items() if "." not in path} | {"acceleration": nested}
