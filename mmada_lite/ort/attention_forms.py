"""The operators by which a graph for CUDA may attend, and which of them is the fastest on a card: measured once, kept in the
user's cache, read when a model is exported or loaded.

Measured are eight layers of attention in a row, of the published model's 32 heads of 128, for a block over its context and
for a whole row. A form that does not run, or gives other numbers than `JOINED`, is left out. What is kept counts for one card,
driver and version of onnxruntime; a file that is damaged, or a folder that cannot be written, is as if nothing had been kept.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite import files
from mmada_lite.contracts import ATTENTION_FORMS, read_json
from mmada_lite.ort import nvidia
from mmada_lite.ort.onnx_bytes import CONTRIB, HALF, constant, model, node, value

FORMS = JOINED, ATTENTION, MHA, PLAIN = ATTENTION_FORMS
HEADS, SIZE, LAYERS = 32, 128, 8
CASES: Mapping[str, tuple[int, int]] = {"block": (32, 1090), "row": (1122, 0)}  # window and past
STEPS = 15  # of a block for each whole row, in an answer of 64 steps
WARM, RUNS = 3, 10
SLOW = 1.1  # times as long as another form: worth a line
CLOSE = 0.05  # of numbers about 1 in half precision
Opened = tuple[Callable[[], object], Callable[[], NDArray]]  # what runs a form, and what then fetches what it gave
Open = Callable[[str, Mapping[str, NDArray]], Opened]  # of a form and the inputs of a case
Times = dict[str, dict[str, float]]  # form -> case -> milliseconds of a layer


def measure(open_form: Open | None = None, clock: Callable[[], float] = time.perf_counter) -> tuple[Times, dict[str, str]]:
    """Times of the forms that run here and give the right numbers, and why each other one is left out. open_form: what opens
    one, for tests; on a card without it."""
    times, left_out = Times(), dict[str, str]()
    opened = open_form or _on_card
    wanted: dict[str, NDArray] = {}
    for form in FORMS:
        try:
            times[form] = {case: _timed(opened(form, _inputs(case)), wanted, case, clock) for case in CASES}
        except Exception as error:  # onnxruntime's own errors share no base class
            left_out[form] = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            times.pop(form, None)
    return times, left_out


def order(times: Times) -> list[str]:
    """The forms, fastest first, by the attention of an answer."""
    return sorted(times, key=lambda form: STEPS * times[form]["block"] + times[form]["row"])


def keep(times: Times) -> str | None:
    """Write what was measured into the user's cache, whole or not at all. Returns why it is not kept, or None."""
    return files.keep(_file(), {"card": _facts(), "milliseconds": times})


def kept() -> Times | None:
    """What was measured on this card before; None where nothing is kept that can be read, or there is no card."""
    if not nvidia.cards():
        return None
    try:
        content = read_json(_file())["milliseconds"]
        times = {form: {case: float(content[form][case]) for case in CASES} for form in FORMS if form in content}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return times if times and all(each > 0 for cases in times.values() for each in cases.values()) else None


def fastest() -> str:
    """The fastest form on the card here, as it was measured before; else the one that always runs."""
    times = kept()
    return order(times)[0] if times else JOINED


def form_of(graph: bytes) -> str:
    """The form of a backbone for CUDA, by the operators that stand in it."""
    if b"MultiHeadAttention" in graph:
        return MHA
    if b"Softmax" in graph:
        return PLAIN
    return ATTENTION if b"q_num_heads" in graph else JOINED


def slowness(graph: bytes, times: Times) -> str | None:
    """A line where another form is clearly faster on this card than the one of a backbone."""
    form, best = form_of(graph), order(times)[0]
    if form not in times:
        return f"attends by {form}, which does not run rightly on this card; export it with --target cuda --attention {best}"
    ratio = sum(times[form].values()) / sum(times[best].values())
    if ratio < SLOW:
        return None
    return f"attends by {form}, which takes {ratio:.1f} times as long as {best} on this card; export it with --attention {best}"


def attention_graph(form: str) -> bytes:
    """query [1, Q, H Hd], key and value [1, W, H Hd], past_key and past_value [1, H, P, Hd] -> y [1, Q, H Hd], through so many
    layers that attend to the same keys."""
    shapes = [constant("heads", np.array([0, 0, HEADS, SIZE])), constant("flat", np.array([0, 0, -1]))]
    shapes.append(constant("scale", np.array(SIZE**-0.5, np.float16)))
    nodes, x = list[bytes](), "query"

    def op(
        kind: str, *inputs: str, to: str, integers: Mapping[str, Any] | None = None, domain: str = "", unused: int = 0
    ) -> str:
        nodes.append(node(kind, inputs, to, integers, domain, unused))
        return to

    def by_heads(name: str) -> str:
        op("Reshape", name, "heads", to=f"{name}_split")
        return op("Transpose", f"{name}_split", to=f"{name}_heads", integers={"perm": (0, 2, 1, 3)})

    if form in (JOINED, PLAIN):
        for name in ("key", "value"):
            op("Concat", f"past_{name}", by_heads(name), to=f"{name}s", integers={"axis": 2})
    if form == PLAIN:
        op("Transpose", "keys", to="turned", integers={"perm": (0, 1, 3, 2)})
    for layer in range(LAYERS):
        y = "y" if layer == LAYERS - 1 else f"y_{layer}"
        if form == ATTENTION:
            counts = {"is_causal": 0, "q_num_heads": HEADS, "kv_num_heads": HEADS}
            x = op("Attention", x, "key", "value", "", "past_key", "past_value", to=y, integers=counts, unused=2)
        elif form == MHA:
            given = (x, "key", "value", "", "", "", "past_key", "past_value")
            x = op("MultiHeadAttention", *given, to=y, integers={"num_heads": HEADS}, domain=CONTRIB, unused=2)
        else:
            query = by_heads(x)
            if form == JOINED:
                mixed = op("Attention", query, "keys", "values", to=f"mixed_{layer}", integers={"is_causal": 0})
            else:
                scores = op("MatMul", op("Mul", query, "scale", to=f"scaled_{layer}"), "turned", to=f"scores_{layer}")
                shares = op("Softmax", scores, to=f"shares_{layer}", integers={"axis": 3})
                mixed = op("MatMul", shares, "values", to=f"mixed_{layer}")
            turned = op("Transpose", mixed, to=f"back_{layer}", integers={"perm": (0, 2, 1, 3)})
            x = op("Reshape", turned, "flat", to=y)
    inputs = [value(name, HALF, 3) for name in ("query", "key", "value")]
    inputs += [value(f"past_{name}", HALF, 4) for name in ("key", "value")]
    return model(nodes, inputs, [value("y", HALF, 3)], shapes, ("", CONTRIB))


def _timed(opened: Opened, wanted: dict[str, NDArray], case: str, clock: Callable[[], float]) -> float:
    """Milliseconds of a layer, the shortest run of some. Raises RuntimeError where the numbers are not those of the first
    form."""
    run, fetch = opened
    run()
    given = fetch().astype(np.float32)
    off = float(np.abs(given - wanted.setdefault(case, given)).max())
    if not off <= CLOSE:
        raise RuntimeError(f"its numbers are off by {off:.2g}")
    shortest = float("inf")
    for number in range(WARM + RUNS):
        started = clock()
        run()
        if number >= WARM:
            shortest = min(shortest, clock() - started)
    return 1e3 * shortest / LAYERS


def _inputs(case: str) -> dict[str, NDArray]:
    window, past = CASES[case]
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal((1, window, HEADS * SIZE)).astype(np.float16) for name in ("query", "key", "value")}
    return feeds | {
        f"past_{name}": random.standard_normal((1, HEADS, past, SIZE)).astype(np.float16) for name in ("key", "value")
    }


def _on_card(form: str, feeds: Mapping[str, NDArray]) -> Opened:
    from mmada_lite.ort.session import Device, onnxruntime_package, open_session

    session = open_session(attention_graph(form), Device("cuda", "a measurement"))
    binding, values = session.io_binding(), onnxruntime_package().OrtValue
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, values.ortvalue_from_numpy(array, "cuda", 0))
    binding.bind_output("y", "cuda")

    return lambda: session.run_with_iobinding(binding), lambda: binding.get_outputs()[0].numpy()


def _facts() -> dict[str, Any]:
    """What a measurement depends on."""
    from mmada_lite.ort.session import onnxruntime_package

    card = nvidia.cards()[0]
    runtime = str(onnxruntime_package().__version__)
    return {"card": card.name, "capability": card.compute_capability, "driver": nvidia.version(), "onnxruntime": runtime}


def _file() -> Path:
    facts = json.dumps([_facts(), HEADS, SIZE, LAYERS, CASES, FORMS])
    return files.cache_folder() / f"attention-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
