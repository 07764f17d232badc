"""What was measured of this machine's speed, for a person and as JSON, and what a bundle's form means for it.

It decides when something is measured: where nothing is kept, or where that is asked for. `mmada_lite.ort.measured` measures.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmada_lite.bundle import Bundle
from mmada_lite.cli import terminal
from mmada_lite.contracts import IN_FLOAT32
from mmada_lite.ort import measured


def examined(anew: bool) -> tuple[measured.Speeds, str | None]:
    """What was measured before, or is measured now and kept; and why it is not kept."""
    speeds = None if anew else measured.kept()
    if speeds is not None:
        return speeds, None
    speeds = measured.measure()
    return speeds, measured.keep(speeds)


def as_json(speeds: measured.Speeds, not_kept: str | None) -> dict[str, Any]:
    """Plain data: milliseconds, and names in the order of their speed."""
    return {
        "width": measured.WIDTH,
        "tokens": list(measured.ROWS),
        "forms": {form: speeds.forms[form] for form in speeds.order},
        "order": speeds.order,
        "threads": {str(count): speeds.threads[count] for count in speeds.thread_order},
        "thread_order": speeds.thread_order,
        "quiet": speeds.quiet,
        "not_kept": not_kept,
    }


def lines(speed: Mapping[str, Any]) -> Iterator[str]:
    """The same for a person, a line a form and a number of threads."""
    cores = max(map(int, speed["threads"]))
    yield f"speed      ms for the products of a layer ({speed['width']:,} wide), fastest first, in steps of so many tokens"
    yield _row("form", (f"{tokens}" for tokens in speed["tokens"]))
    for form, times in speed["forms"].items():
        yield _row(measured.form_in_words(form), _milliseconds(times.values()), f"{cores} threads")
    for count, times in speed["threads"].items():
        if int(count) != cores or len(speed["threads"]) > 1:
            name = measured.form_in_words(speed["order"][0])
            yield _row(name, _milliseconds(times.values()), f"{count} thread{'s' if count != '1' else ''}")
    if speed["not_kept"]:
        yield f"  !  {speed['not_kept']}"


def _row(name: str, cells: Any, about: str = "") -> str:
    return f"  {name:18} {' '.join(f'{cell:>8}' for cell in cells)}  {about}".rstrip()


def _milliseconds(times: Any) -> Iterator[str]:
    return (f"{each:.1f}" for each in times)


def say_form(folder: Path, *, may_measure: bool) -> None:
    """A note about a bundle that was just written, where another form of no more memory is clearly faster here."""
    bundle = Bundle.open(folder)
    if bundle.target not in IN_FLOAT32:
        return
    speeds = examined(anew=False)[0] if may_measure else measured.kept()
    if speeds is not None and speeds.quiet and (slow := measured.slowness(bundle, speeds)) is not None:
        terminal.note(f"mmada-lite: {slow}")
