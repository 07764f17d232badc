"""A pattern, or a JSON schema, as an automaton over bytes: made by outlines-core, in a process of its own whose memory and time
are bounded, since a short pattern can ask for more of both than any machine has.

It knows nothing of tokens.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import numpy as np

from mmada_lite.errors import Error, shown
from mmada_lite.forms.tokens import ByteAutomaton

MOST_MEMORY, MOST_SECONDS = 1 << 30, 10  # of that process: bytes; seconds of a processor
MOST_STATES = 1 << 14  # of an automaton over bytes: 16 MiB
LONGEST = 1 << 16  # of a pattern or a schema, in characters
# Called a few times a second while that process works: what it raises ends the process, and goes on.
while_waiting: ContextVar[Callable[[], None]] = ContextVar("while_waiting", default=lambda: None)

# What the process runs: the request as JSON comes in, a line of JSON and the table go out. It imports nothing of ours. To it
# every text ends in the byte 0, which none of ours has: Index loses what leads from a state that may end a text to one that may
# not (findings/outlines-core-lost-edges.sh).
_MAKER = """
from array import array

def made(asked):
    from outlines_core import Index, Vocabulary
    from outlines_core.json_schema import build_regex_from_schema
    try:
        pattern = asked["pattern"] if "pattern" in asked else build_regex_from_schema(asked["schema"])
        index = Index("(?:" + pattern + ")\\x00", Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)}))
    except Exception as fault:
        return {"fault": str(fault)}, b""
    edges = index.get_transitions()
    names = {state: number for number, state in enumerate(edges)}
    for own in list(edges.values()):
        for state in own.values():
            names.setdefault(state, len(names))
    answer = {"states": len(names), "start": names[index.get_initial_state()]}
    answer["final"] = [names[state] for state in index.get_final_states() if state in names]
    if len(names) > asked["states"]:
        return answer, b""
    rows = [array("i", [-1]) * 256 for _ in names]
    for state, own in edges.items():
        for byte, after in own.items():
            if byte < 256:
                rows[names[state]][byte] = names[after]
    return answer, b"".join(row.tobytes() for row in rows)
"""
_LIMITED = """
import json, resource, sys
asked = json.loads(sys.stdin.buffer.readline())
sys.path[:] = asked["path"]
for limit, most in ((resource.RLIMIT_AS, asked["memory"]), (resource.RLIMIT_CPU, asked["seconds"]), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (most, most))
answer, table = made(asked)
sys.stdout.buffer.write(json.dumps(answer).encode() + b"\\n" + table)
"""


def pattern_automaton(pattern: str) -> ByteAutomaton:
    """The automaton of the texts that a regular expression matches from their first to their last character.

    The syntax is what Python's re and Rust's regex crate share: no look-around, no references back. Raises Error, in one line,
    for what is no pattern or cannot be an automaton, for one that no text ends, for one that is too large, and where
    outlines-core is missing.
    """
    if len(pattern) > LONGEST:
        raise Error(f"the pattern has {len(pattern)} characters; use at most {LONGEST}")
    named = f"the pattern {shown(pattern)}"
    _check_syntax(pattern, named)
    return _made({"pattern": without_anchors(pattern)}, named, pattern)


def schema_automaton(schema: str) -> ByteAutomaton:
    """The automaton of a JSON schema that `mmada_lite.forms.schema` has read. Raises Error as `pattern_automaton` does."""
    return _made({"schema": schema}, "the schema")


def _check_syntax(pattern: str, named: str) -> None:
    """Raise Error for what Python does not read, or reads in another way than Rust: what follows would be another pattern."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of sets whose meaning is to change, and which Rust takes as they are to be
            re.compile(pattern)
    except (re.error, Warning) as fault:
        raise Error(f"{named} is no regular expression: {fault}") from None
    except (RecursionError, OverflowError) as fault:
        raise Error(f"{named} is no regular expression that can be read: {str(fault)[:80]}") from None
    signs = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "a", pattern, flags=re.DOTALL)
    if greedy := re.search(r"[*+?}]\+|\(\?>", signs):
        raise Error(f"{named} has {greedy[0]!r}, which gives nothing back; an automaton has no such thing, so leave it out")


def without_anchors(pattern: str) -> str:
    """A pattern without ^ at its begin and $ at its end: it covers the whole text anyway."""
    flags = re.match(r"\(\?[a-zA-Z]+\)", pattern)
    begin = flags.end() if flags else 0
    begun = begin + 1 if pattern.startswith("^", begin) else begin + 2 if pattern.startswith("\\A", begin) else begin
    pattern = pattern[:begin] + pattern[begun:]
    last = re.search(r"(\\*)(\$|[zZ])\Z", pattern)
    if last and last[2] == "$" and len(last[1]) % 2 == 0:
        return pattern[:-1]
    return pattern[:-2] if last and last[2] != "$" and len(last[1]) % 2 == 1 else pattern


def _made(asked: dict[str, Any], named: str, pattern: str | None = None) -> ByteAutomaton:
    if find_spec("outlines_core") is None:
        raise Error('a pattern or a schema needs outlines-core, which is not installed; pip install "mmada-lite[forms]"')
    answer, table = _run({**asked, "states": MOST_STATES}, named)
    if fault := answer.get("fault"):
        raise Error(_in_words(fault, named, pattern))
    if answer["states"] > MOST_STATES:
        states = f"{named} is an automaton of {answer['states']} states over bytes, and {MOST_STATES} are the most"
        raise Error(f"{states}; make it simpler, its repeats fewer, or say [a-z] in place of \\w")
    following = np.frombuffer(table, dtype=np.int32).reshape(-1, 256).copy()
    final = np.isin(following[:, 0], answer["final"])
    following[:, 0] = -1
    if not final.any():
        raise Error(f"{named} cannot end: no text matches all of it")
    return ByteAutomaton(following, answer["start"], final)


def _run(asked: dict[str, Any], named: str) -> tuple[dict[str, Any], bytes]:
    """What `made` answers, in a process that may not have more than its limits."""
    request = json.dumps({**asked, "memory": MOST_MEMORY, "seconds": MOST_SECONDS, "path": sys.path}).encode()
    code, out, errors = _ended([sys.executable, "-I", "-S", "-c", _MAKER + _LIMITED], request + b"\n")
    if code > 0 and b"MemoryError" not in errors:  # neither killed nor out of memory
        said = (errors.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        raise Error(f"outlines-core cannot be used: {said[:200]}")
    if code:
        limits = f"{MOST_MEMORY >> 20} MiB or {MOST_SECONDS} s to be made an automaton"
        raise Error(f"{named} takes more than {limits}; make it simpler or its repeats fewer")
    line, _, table = out.partition(b"\n")
    answer: dict[str, Any] = json.loads(line)
    return answer, table


def _ended(command: list[str], asked: bytes) -> tuple[int, bytes, bytes]:
    """Exit code and output of a process, which ends early where `while_waiting` raises."""
    pipe = subprocess.PIPE
    request: bytes | None = asked
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            while True:
                try:
                    out, errors = process.communicate(request, timeout=0.2)
                    return process.returncode, out, errors
                except subprocess.TimeoutExpired:
                    request = None  # it is on its way
                    while_waiting.get()()
        except BaseException:
            process.kill()
            raise


def _in_words(fault: str, named: str, pattern: str | None) -> str:
    if "incompatible with the regex" in fault or "start state" in fault:
        if pattern is not None and re.search(r"(?<![\\[])[$^]|\\[AzZ]", without_anchors(pattern)):
            return f"{named} cannot end: ^ or $ stands inside it; it covers the whole text, so leave them out"
        return f"{named} cannot end: nothing matches what stands at one place of it"
    if "word boundaries" in fault or "building NFA" in fault:
        what = "look-around, references back, borders of words and anchors are what none has"
        return f"{named} cannot be made an automaton: {what}"
    return f"{named} cannot be made an automaton: {shown(fault)}"
