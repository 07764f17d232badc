"""How a mutant is run: in a fork, so that nothing of it stays, and in a way that unchanged code passes.

`Forked` imports everything, collects the tests and runs them once to learn which lines each reaches and what it costs. A child
then puts the mutated code into the functions that exist and runs the tests that reach the mutated lines, likely killers first,
until one fails. `Anew` imports the libraries alone; a child imports the package from the mutated source and runs all tests:
slower, for what is done when a module is loaded, and a check of the other way. It knows nothing of how mutants are made."""

import argparse
import contextlib
import functools
import gc
import importlib
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import _pytest.runner
import pytest

LIBRARIES = (
    "numpy",
    "onnxruntime",
    "tokenizers",
    "PIL.Image",
    "torch",
    "onnx",
    "safetensors.torch",
    "hypothesis",
    "accelerate",
)
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Mutant:
    """One change of one file. lines: what it changes; function: the first line of the function that holds it, 0 where it is
    done when the module is loaded; wording: of a message, or the case of a name that another mutant misspells."""

    file: str
    number: int
    lines: range
    function: int
    wording: bool
    source: str = field(repr=False)
    code: str = field(repr=False)

    def shown(self) -> str:
        pairs = zip(self.source.splitlines(), [*self.code.splitlines(), ""], strict=False)
        return next((f"L{n}: {a.strip()}  =>  {b.strip()}" for n, (a, b) in enumerate(pairs, 1) if a.strip() != b.strip()), "")


class Child:
    """A fork that does `work` and says how it went. result: lived where the work returns 0, killed where it returns 1, endless
    and stuck where it passed its limit; anything else is a fault of this program and no kill."""

    def __init__(self, work: Callable[[Tell], int]) -> None:
        sys.stdout.flush()
        end, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                os.setpgid(0, 0)
                nothing = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nothing, stream)
                code = work(lambda line: os.write(told, (line.replace("\n", " | ")[:600] + "\n").encode()))
            except BaseException as fault:
                os.write(told, f"ERROR {fault!r}\n".encode())
            finally:
                os._exit(code)
        os.close(told)
        with os.fdopen(end, errors="replace") as pipe:
            self.said = pipe.read().splitlines()
        _, status, usage = os.wait4(pid, 0)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        self.seconds = usage.ru_utime + usage.ru_stime
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            self.result = {"SIGPROF": "endless", "SIGALRM": "stuck"}.get(name, name)
        else:
            self.result = {0: "lived", 1: "killed"}.get(os.WEXITSTATUS(status), "error")

    def last(self, word: str) -> str:
        """What it told last that begins with a word."""
        return next((line.removeprefix(f"{word} ") for line in reversed(self.said) if line.startswith(word)), "")

    def record(self) -> dict[str, Any]:
        why = {"test": self.last("TEST"), "why": (self.last("FAILED") or self.last("ERROR"))[-200:]}
        return {"result": self.result, "seconds": round(self.seconds, 2)} | (why if self.result != "lived" else {})


def limit(seconds: float) -> None:
    """Ends this process after so many of its own seconds, and when it waits for very long."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(int(60 + 20 * seconds))


class Forked:
    """A plugin of pytest that takes the place of its loop."""

    def __init__(self, options: argparse.Namespace, pytest_options: list[str]) -> None:
        self.options, self.pytest_options = options, [*pytest_options, "-s"]
        self.watching: Any = None
        self.reached: dict[tuple[str, int], set[int]] = defaultdict(set)  # file and line -> tests
        self.shared: dict[tuple[str, int], set[str]] = defaultdict(set)  # the same -> shared fixtures
        self.kills: Counter[tuple[object, int]] = Counter()

    def start(self, work: Callable[["Forked"], None]) -> int:
        self.work = work
        return int(pytest.main(self.pytest_options, plugins=[self]))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.session, self.items = session, session.items
        lru = functools._lru_cache_wrapper
        self.caches = [each for each in gc.get_objects() if type(each) is lru and str(each.__module__).startswith("mmada_lite")]
        self.learn()
        everything = gc.get_objects()
        self.functions: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in everything:
            if type(thing) is FunctionType:
                self.functions[os.path.realpath(thing.__code__.co_filename)].append(thing)
        gc.freeze()
        self.control()
        self.work(self)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[Any]:
        """Lines that a shared fixture reaches are reached by every test that uses it."""
        if self.watching is None or fixturedef.scope == "function":
            return (yield)
        outer, self.context = self.context, f"fixture {fixturedef.argname}"
        self.watching.switch_context(self.context)
        try:
            return (yield)
        finally:
            self.context = outer
            self.watching.switch_context(outer)

    def learn(self) -> None:
        """What each test costs and reaches; one that fails or skips is left out."""
        import coverage  # which those that import anew do without

        folders = (Path(), Path("mmada_lite"))  # the package reaches some folders by a link
        self.watching = coverage.Coverage(
            data_file=None, include=[str(Path.cwd() / f / n) for f in folders for n in self.options.files]
        )
        self.watching.start()
        self.cost, self.good = [0.0] * len(self.items), []
        for n, item in enumerate(self.items):
            self.empty_caches()  # or the lines behind one are reached by the first test alone
            self.context = item.nodeid
            self.watching.switch_context(self.context)
            began = time.process_time()
            failed = self.test(n, (n + 1) % len(self.items))
            self.cost[n] = time.process_time() - began
            if failed or self.cost[n] > self.options.slowest:
                print(f"left out, {self.cost[n]:.1f} s:", item.nodeid, failed[:200], flush=True)
            else:
                self.good.append(n)
        self.watching.stop()
        data, self.watching = self.watching.get_data(), None
        users: dict[str, set[int]] = defaultdict(set)
        for n in self.good:
            for name in (self.items[n].nodeid, *(f"fixture {name}" for name in self.items[n].fixturenames)):
                users[name].add(n)
        for measured in data.measured_files():
            file = os.path.relpath(os.path.realpath(measured))
            for line, contexts in data.contexts_by_lineno(measured).items():
                self.reached[file, line].update(*(users[name] for name in contexts))
                self.shared[file, line].update(
                    name.removeprefix("fixture ") for name in contexts if name.startswith("fixture ")
                )

    def test(self, n: int, following: int) -> str:
        """Why it did not pass, nothing where it did."""
        reports = _pytest.runner.runtestprotocol(self.items[n], nextitem=self.items[following], log=False)
        bad = sorted((report for report in reports if not report.passed), key=lambda report: report.skipped)
        return f"{bad[0].outcome} {str(bad[0].longrepr)[-300:]}" if bad else ""

    def control(self) -> None:
        """Unchanged code, put in as a mutant's is, must pass all tests; one that it does not pass is left out."""
        codes = {file: Path(file).read_text(encoding="utf-8") for file in self.options.files}
        stale, seconds = set().union(*self.shared.values()), 0.0
        todo = self.good
        while todo:
            child = Child(functools.partial(self.tests, codes=codes, chosen=todo, stale=stale))
            seconds += child.seconds
            if child.result == "lived":
                break
            bad = next((n for n in todo if self.items[n].nodeid == child.last("TEST")), None)
            if child.result == "error" or bad is None:
                raise SystemExit(f"control: {child.said}")
            print("left out, unchanged code:", child.record(), flush=True)
            self.good.remove(bad)
            todo = [n for n in todo if n > bad]
        print(f"unchanged code passes {len(self.good)} tests in {seconds:.0f} s", flush=True)

    def tests(self, tell: Tell, codes: dict[str, str], chosen: list[int], stale: set[str]) -> int:
        """In the child: 1 where a test fails."""
        for file, code in codes.items():
            self.patch(os.path.realpath(file), code)
        self.empty_caches()
        self.forget(stale)
        self.session._setupstate.teardown_exact(self.items[chosen[0]])
        for n, following in zip(chosen, [*chosen[1:], chosen[-1]], strict=True):
            limit(1.5 + 5 * self.cost[n])
            tell(f"TEST {self.items[n].nodeid}")
            if failed := self.test(n, following):
                tell(f"FAILED {failed}")
                return 1
        return 0

    def empty_caches(self) -> None:
        for cache in self.caches:
            cache.cache_clear()

    def patch(self, path: str, code: str) -> None:
        """The functions of a file take their code from `code`."""
        named: dict[str, list[CodeType]] = defaultdict(list)

        def collect(outer: CodeType) -> None:
            for inner in outer.co_consts:
                if isinstance(inner, CodeType):
                    named[inner.co_qualname].append(inner)
                    collect(inner)

        collect(compile(code, path, "exec"))
        changed = 0
        for function in self.functions[path]:
            now = function.__code__
            fitting = [each for each in named[now.co_qualname] if len(each.co_freevars) == len(now.co_freevars)]
            if fitting:
                function.__code__ = min(fitting, key=lambda each: abs(each.co_firstlineno - now.co_firstlineno))
                changed += 1
        if not changed and named:
            raise LookupError(f"no function of {path} is loaded")

    def forget(self, stale: set[str]) -> None:
        """Shared fixtures that mutated lines made, what was made of those, and what they are made of, are made anew."""
        known = {each for item in self.items for same in item._fixtureinfo.name2fixturedefs.values() for each in same}
        made = {each for each in known if each.scope != "function"}
        while more := {each.argname for each in made if stale & {*each.argnames}} - stale:
            stale = stale | more
        while more := {name for each in made if each.argname in stale for name in each.argnames} - stale:
            stale = stale | more
        for each in made:
            if each.argname in stale:
                each.cached_result = None
                each._finalizers.clear()

    def try_one(self, mutant: Mutant) -> dict[str, Any]:
        if not mutant.function:
            return {"result": "loaded"}
        places = [(mutant.file, line) for line in mutant.lines]
        reach = set().union(*(self.reached[place] for place in places)) & {*self.good}
        function = (mutant.file, mutant.function)

        def promise(n: int) -> float:
            return (self.kills[function, n] + 0.2 * self.kills[mutant.file, n] + 0.05) / (self.cost[n] + 0.03)

        chosen, total = list[int](), 0.0
        for n in sorted(reach, key=promise, reverse=True):
            if not chosen or total + self.cost[n] <= self.options.seconds:
                chosen.append(n)
                total += self.cost[n]
        if not chosen:
            return {"result": "unreached"}
        stale = set().union(*(self.shared[place] for place in places))
        codes = {mutant.file: mutant.code}
        child = Child(functools.partial(self.tests, codes=codes, chosen=chosen, stale=stale))
        for n in chosen:
            if self.items[n].nodeid == child.last("TEST") and child.result != "lived":
                self.kills.update([(function, n), (mutant.file, n)])
        return child.record() | {"ran": len(chosen), "of": len(reach)}


class Anew(importlib.abc.MetaPathFinder):
    """Imports the one file with its mutated text, in each child, and tells pytest's failures."""

    def __init__(self, options: argparse.Namespace, pytest_options: list[str]) -> None:
        self.pytest_options = [*pytest_options, "-x"]
        self.path, self.code = "", ""

    def start(self, work: Callable[["Anew"], None]) -> int:
        for name in LIBRARIES:
            importlib.import_module(name)
        sys.meta_path.insert(0, self)
        self.most = 3600.0
        control = Child(self.child)
        print("unchanged code:", control.record(), flush=True)
        self.most = 5 + 5 * control.seconds
        if control.result != "lived":
            return 1
        work(self)
        return 0

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if self.path else None
        if spec is None or spec.loader is None or spec.origin is None or os.path.realpath(spec.origin) != self.path:
            return None
        spec.loader.get_code = lambda _: compile(self.code, self.path, "exec")  # type: ignore[attr-defined]
        return spec

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell(f"FAILED {report.longrepr}")
            self.tell(f"TEST {report.nodeid}")

    def child(self, tell: Tell) -> int:
        self.tell = tell
        limit(self.most)
        code = pytest.main(self.pytest_options, plugins=[self])
        return {0: 0, 1: 1, 2: 1, 4: 1}.get(int(code), 3)  # 2 and 4: what is mutated does not even import

    def try_one(self, mutant: Mutant) -> dict[str, Any]:
        self.path, self.code = os.path.realpath(mutant.file), mutant.code
        return Child(self.child).record()
