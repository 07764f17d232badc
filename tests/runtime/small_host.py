"""A small host of bundles of format 2 for the CPU, written from docs/bundle.md by somebody who had seen nothing else."""

import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy import float32 as F32
from tokenizers import Tokenizer


def uniform(seed: int, stream: int, step: int, positions: np.ndarray) -> np.ndarray:
    """Philox4x32-10 numbers of row 0. Streams: 0 text tokens, 1 order of text, 2 picture codes, 3 confidence."""
    c = [positions.astype(np.uint64) // 4] + [np.full(positions.shape, x, np.uint64) for x in (0, step, stream)]
    for i in range(10):
        k0, k1 = (seed + i * 0x9E3779B9) % 2**32, ((seed >> 32) + i * 0xBB67AE85) % 2**32
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k0, q % 2**32, p >> 32 ^ c[3] ^ k1, p % 2**32]
    return (((np.choose(positions % 4, c) >> 9) + 0.5) / 2**23).astype(F32)


def still_masked(schedule: str, n: int, k: int, steps: int) -> int:
    """floor(n * schedule(k / steps)): each operation is rounded to float32, functions are taken in float64."""
    r = F32(k) / F32(steps)
    if schedule == "cosine":
        return math.floor(F32(n) * F32(math.cos(F32(math.pi) * r / F32(2))))
    if schedule == "sigmoid":
        a, b, c = (F32(1) / (F32(1) + F32(math.exp(-x))) for x in (F32(3), F32(6) * r - F32(3), F32(-3)))
        return math.floor(F32(n) * max((a - b) / (a - c), F32(1e-6)))
    power = 1.0 if schedule == "linear" else float(schedule.removeprefix("pow"))
    return math.floor(F32(n) * max(F32(1) - F32(float(r) ** power), F32(1e-6)))


class Host:
    """A bundle, opened from its folder."""

    def __init__(self, folder: str | Path) -> None:
        """Checks `bundle.json` and opens the graphs and the tokenizer."""
        self.bundle = bundle = json.loads(Path(folder, "bundle.json").read_text("utf-8"))
        known = {"format": "mmada-lite-bundle", "format_version": 2, "family": "mmada", "needs": [], "target": "cpu"}
        if unknown := {key: bundle.get(key) for key in known if bundle.get(key) != known[key]}:
            raise ValueError(f"this host cannot open a bundle of {unknown}")
        self._settings("text", None), self._settings("image", None)  # refuses those that it cannot decode with
        graphs, model, case, options = bundle["graphs"], bundle["architecture"], "case" in bundle["knows"], ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # matters without VNNI
        self.graphs = {name: ort.InferenceSession(Path(folder, graphs[name]["file"]), options) for name in graphs}
        self.names = graphs["backbone"]["outputs"]  # "hidden", then keys and values
        self.no_past = dict.fromkeys(self.names[1:], np.zeros((1, model["n_kv_heads"], 0, model["head_dim"]), F32))
        text = json.loads(Path(folder, "tokenizer.json").read_text("utf-8"))
        text["added_tokens"] = [token for token in text["added_tokens"] if not token["special"]]
        self.tokenizer = Tokenizer.from_str(json.dumps(text | {"post_processor": None}))
        self.special, self.offset = bundle["vocabulary"]["special"], bundle["vocabulary"]["image_code_offset"]
        self.mask, self.longest, self.upper = self.special["mask"], model["max_sequence_length"], range(65, 91 if case else 65)

    def chat(self, messages: list[dict], settings: dict | None = None, seed: int = 0) -> list[int]:
        """The ids of an answer to messages of `role` and `content`, masks where decoding ended early."""
        return self.ask(np.empty(0), messages, settings, seed)

    def ask(self, codes: np.ndarray, messages: list[dict], settings: dict | None = None, seed: int = 0) -> list[int]:
        """The same about a picture of codes [h, w]."""
        s, step, caches = self._settings("text", settings), 0, []
        length, size, cache, threshold = (s.get(x) for x in ("answer_length", "block_length", "cache", "threshold"))
        said = [i for m in messages for i in self._row("message", m | {"content": m["content"].strip()})]
        row = self._row("chat", {"messages": said, "masks": [self.mask] * length})
        row = self._row("ask", {"codes": (codes.ravel() + self.offset).tolist(), "chat": row}) if codes.size else row
        rows = [np.array(row), np.full(len(row), self.mask)][: 2 if s["guidance"] else 1]
        answer, blocks = rows[0][-length:], math.ceil(length / size)
        for block, first in enumerate(range(0, length, size)):
            stop, window, least = min(first + size, length), None, threshold and F32(math.log(threshold))
            steps = max(1, min(s["steps"] // blocks + (block < s["steps"] % blocks), stop - first))
            while (masked := first + np.flatnonzero(answer[first:stop] == self.mask)).size:
                context, u = (window, caches), uniform(seed, 0, step, masked)
                token, score, logits, caches = self._predict("text_head", rows, masked - length, s, u, context)
                window = {"prefix": (first - length, 0), "dual": (first - length, stop - length)}.get(cache)
                logits[:, self.mask] = -np.inf
                for i in np.flatnonzero(token == self.mask):
                    token[i], score[i] = logits[i].argmax(), -np.log(np.exp(logits[i] - logits[i].max()).sum())
                score = uniform(seed, 1, step, masked) if s["order"] == "random" else score
                count = max(1, np.sum(score >= least)) if threshold else math.ceil(masked.size / steps)
                chosen = np.argsort(-score, kind="stable")[:count]
                for row in rows:
                    row[masked[chosen] - length] = token[chosen]
                step, steps = step + 1, steps - 1
            if {self.special["eot"], self.special["eos"]} & set(answer.tolist()):
                break
        return answer.tolist()

    def paint(self, prompt: str, settings: dict | None = None, seed: int = 0) -> np.ndarray:
        """Draws a picture: its codes [h, w]."""
        s, image, k = self._settings("image", settings), self.bundle["image"], 0
        n = (image["resolution"] // image["downsample"]) ** 2 if image else 0
        steps, slots = min(s["steps"], n), {"prompt": prompt.strip(), "codes": [self.mask] * n}
        rows = [np.array(self._row(name, slots)) for name in ("paint", "unconditional")[: 2 if s["guidance"] else 1]]
        places = np.arange(n) + np.argmax(rows[0] == self.mask) - len(rows[0])  # from the end, where the rows are alike
        while (masked := np.flatnonzero(rows[0][places] == self.mask)).size:
            token, score, *_ = self._predict("image_head", rows, places[masked], s, uniform(seed, 2, k, masked))
            gumbel, k = uniform(seed, 3, k, masked), k + 1
            for _ in range(2):
                gumbel = -np.log(np.maximum(gumbel, F32(1e-20)), dtype=np.float64).astype(F32)
            scale = F32(math.prod(1 - i / steps for i in range(1, k + 1)) * s["temperature"])
            score = np.maximum(score, F32(math.log(1e-20))) + scale * gumbel
            count = max(0, min(masked.size - 1, max(steps - k, still_masked(s["schedule"], n, k, steps))))
            written = score >= np.sort(score)[count]
            for row in rows:
                row[places[masked[written]]] = token[written] + self.offset
        return (rows[0][places] - self.offset).reshape(math.isqrt(n), -1)

    def _settings(self, kind: str, given: dict | None) -> dict:
        """The settings given, over the bundle's own; refuses what this host does not decode with."""
        s = {"guidance": 0.0, "mode": "default", "acceleration": {}} | self.bundle["defaults"][kind] | (given or {})
        fast, known = s["acceleration"], {"cache", "threshold"} if kind == "text" else set()
        if s["mode"] != "default" or fast.keys() - known or fast.get("cache") not in (None, "prefix", "dual"):
            raise ValueError(f"this host does not decode with mode {s['mode']!r} and acceleration {fast}")
        return s | fast

    def _row(self, name: str, slots: dict) -> list[int]:
        """Fills the slots in the template of a row."""
        if name not in self.bundle["rows"]:
            raise ValueError(f"this model has no row {name!r}: it cannot do this task")
        ids: list[int] = []
        for element in self.bundle["rows"][name]:
            if isinstance(element, dict):
                part = re.sub(r"\{(role|content)\}", lambda match: slots[match[1]], element["text"])
            else:
                part = [self.special[element]] if element in self.special else slots[element[1:-1]]
            part = self.tokenizer.encode(part.translate({c: c + 32 for c in self.upper})).ids if isinstance(part, str) else part
            ids += part[1:] if ids[-1:] == part[:1] == [self.special["bos"]] else part
        if len(ids) > self.longest:
            raise ValueError(f"a row of {len(ids)} tokens is longer than this model takes")
        return ids

    def _predict(self, head: str, rows: list, queries: np.ndarray, s: dict, u: np.ndarray, context: tuple = ()) -> tuple:
        """Token, log probability and logits at places counted from the rows' end, and what whole rows leave behind."""
        (window, caches), hidden, kept = context or (None, None), [], []
        for i, row in enumerate(rows):
            first, stop = (len(row) + x for x in window or (-len(row), 0))
            feeds = {"positions": np.arange(first, stop)[None], "rows": (queries + len(row) - first)[None]}
            feeds["embeddings"] = self.graphs["embedder"].run(None, {"tokens": row[None, first:stop]})[0]
            for name, kv in (caches[i] if window else self.no_past).items():
                feeds[f"past_{name}"] = np.delete(kv, slice(first, stop), 2)
            kept.append(dict(zip(self.names, self.graphs["backbone"].run(self.names, feeds), strict=True)))
            hidden.append(kept[i].pop("hidden")[0])
        mix = np.array([[1 + s["guidance"], -s["guidance"]][: len(rows)]], F32)
        heat = np.array(s.get("sampling_temperature", s["temperature"]), F32)
        feeds = {"hidden": np.stack(hidden), "mix": mix, "temperature": heat, "uniform": u[None]}
        token, score, logits = self.graphs[head].run(["token", "log_probability", "logits"], feeds)
        return token[0], score[0], logits[0], caches if window else kept
