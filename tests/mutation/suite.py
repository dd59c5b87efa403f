"""Tests that are collected once, and run in forks of the process that collected them."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

OPTIONS = ("-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--import-mode=importlib")
# Seconds of CPU that a test may take, and times those that it took: an endless loop is a failure that is noticed.
SECONDS, SLOWER = 4.0, 3.0
WAIT = 20  # times as long on the clock, for a test that waits or a machine that is busy
MEMORY = 6 * 2**30  # bytes on top of those in use
Lines = set[tuple[str, int]]


class Tracer:
    """Notes the lines of some files that run."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = frozenset(paths)
        self.lines: Lines = set()

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self.paths:
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace_line

    def trace_line(self, frame: Any, event: str, argument: Any) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace_line


@dataclass
class Test:
    """A test: the lines that it runs, and its seconds."""

    __test__ = False
    name: str
    lines: Lines = field(default_factory=set)
    seconds: float = 0.0
    passed: bool = False


class Suite:
    """Collected tests of a pytest session that is held before it runs."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session
        self.items = {item.nodeid: item for item in session.items}

    def measure(self, paths: Sequence[str]) -> list[Test]:
        """Run all tests as they come, and return those that pass with the lines that they run."""
        tracer = Tracer(paths)

        def run(report: Callable[[Any], None]) -> None:
            tests = []
            names = [*self.items]
            for name, following in zip(names, [*names[1:], None], strict=True):
                tracer.lines = set()
                sys.settrace(tracer)
                tests.append(self._run(name, following))
                sys.settrace(None)
                tests[-1].lines = tracer.lines
            report(tests)

        return [test for test in fork(run) or [] if test.passed]

    def first_failure(self, tests: Sequence[Test], prepare: Callable[[], bool] = lambda: True) -> str | None:
        """Return the name of the first test that fails, is killed or does not end after a change; ``None`` if all pass.

        Raises:
            NotImplementedError: If the change cannot be prepared.
        """
        current = mmap.mmap(-1, 4)

        def run(report: Callable[[Any], None]) -> None:
            limit_memory()
            if not prepare():
                report("unprepared")
                return
            for i, test in enumerate(tests):
                current[:] = i.to_bytes(4, "little")
                limit = SECONDS + SLOWER * test.seconds
                signal.setitimer(signal.ITIMER_PROF, limit)
                signal.setitimer(signal.ITIMER_REAL, WAIT * limit)
                following = tests[i + 1].name if i + 1 < len(tests) else None
                if not self._run(test.name, following).passed:
                    return
            report("passed")

        result = fork(run)
        if result == "unprepared":
            raise NotImplementedError
        return None if result == "passed" else tests[int.from_bytes(current[:], "little")].name

    def _run(self, name: str, following: str | None) -> Test:
        item, before, begin = self.items[name], self.session.testsfailed, time.monotonic()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=self.items[following] if following else None)
        return Test(name, seconds=time.monotonic() - begin, passed=self.session.testsfailed == before)


def fork(run: Callable[[Callable[[Any], None]], None]) -> Any:
    """Return the value that a function reports in a process of its own; ``None`` if it is killed or reports none."""
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if not child:
            try:
                os.setpgrp()
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, 1)
                os.dup2(sink, 2)
                run(lambda value: file.write(pickle.dumps(value)) and file.flush())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that tests started
        file.seek(0)
        content = file.read()
        return pickle.loads(content) if content else None


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


class _Plugin:
    def __init__(self, hold: Callable[[Suite], None]) -> None:
        self.hold = hold

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.hold(Suite(session))
        return True


def collect(tests: Sequence[str], hold: Callable[[Suite], None]) -> None:
    """Collect tests and call a function with them; failing examples are neither stored nor made smaller."""
    from hypothesis import Phase, settings

    settings.register_profile("mutation", database=None, deadline=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    with tempfile.TemporaryDirectory() as folder:
        pytest.main([*OPTIONS, f"--basetemp={folder}/pytest", *tests], plugins=[_Plugin(hold)])
