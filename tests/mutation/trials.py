"""Trials of the mutants of an area."""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TextIO

from tests.mutation.code_swap import Loader, live_functions, swap, swap_values
from tests.mutation.explained import EXPLAINED
from tests.mutation.mutants import BrokenCode, broken_codes
from tests.mutation.suite import Suite, Test, Tracer, collect, fork

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "lightning_compress"


@dataclass(frozen=True)
class Area:
    """Files of the package, arguments of pytest for the tests that have to notice, and a sample of mutants.

    The sample is one of each file. A mutant that survives tests of ``budget`` seconds counts as a survivor.
    """

    files: Sequence[Path]
    tests: Sequence[str]
    sample: int | None
    seed: int
    budget: float

    @cached_property
    def sources(self) -> dict[Path, str]:
        """Content of the files when it was first asked for."""
        return {file: file.read_text() for file in self.files}

    def mutants(self, file: Path) -> Iterator[tuple[int, BrokenCode]]:
        """Yield the mutants of a file with their numbers."""
        found = broken_codes(self.sources[file], str(file))
        size = len(found) if self.sample is None else min(self.sample, len(found))
        chosen = random.Random(f"{self.seed} {file.name}").sample(range(len(found)), size)
        return ((i, found[i]) for i in sorted(chosen))


@dataclass(frozen=True)
class Outcome:
    """Outcome of a mutant: the test that noticed it, or ``None`` after a number of tests."""

    file: Path
    line: int
    text: str
    noticed_by: str | None
    num_tests: int

    @property
    def explanation(self) -> str | None:
        return EXPLAINED.get(f"{self.file.relative_to(PACKAGE)}: {self.text}")

    def __str__(self) -> str:
        verdict = self.explanation or f"SURVIVED {self.num_tests} tests"
        return f"  {self.file.relative_to(PACKAGE)}:{self.line}: {self.text}  [{verdict}]"


@dataclass(frozen=True)
class AtImport:
    """A mutant of code that runs at import, and the tests that run any line of its file, quick ones first."""

    file: Path
    number: int
    tests: Sequence[str]


def try_area(area: Area) -> Iterator[Outcome]:
    """Try the mutants of an area; those of code that runs at import come last.

    Raises:
        RuntimeError: If the tests cannot be collected.
    """
    output = os.fdopen(os.dup(1), "w", buffering=1)
    assert area.sources  # read before the package is imported

    # In a fork, so that this process stays without the package.
    def session(report: Callable[[Any], None]) -> None:
        tracer = Tracer([str(file) for file in area.files])
        sys.settrace(tracer)
        found: list[Outcome | AtImport] = []

        def hold(suite: Suite) -> None:
            sys.settrace(None)
            try:
                found.extend(_try_in_session(area, suite, tracer, output))
                report(found)
            except BaseException:
                traceback.print_exc(file=output)

        collect(area.tests, hold)

    found = fork(session)
    if found is None:
        raise RuntimeError(f"pytest cannot collect {', '.join(area.tests)}: run it by itself")
    for item in found:
        outcome = _try_at_import(area, item) if isinstance(item, AtImport) else item
        if isinstance(item, AtImport) and not outcome.noticed_by:
            print(outcome, flush=True)
        yield outcome


def _try_in_session(area: Area, suite: Suite, at_import: Tracer, output: TextIO) -> Iterator[Outcome | AtImport]:
    begin = time.monotonic()
    tests = suite.measure(at_import.paths)
    failing = sorted({*suite.items} - {test.name for test in tests})
    print(f"{len(tests)} tests in {time.monotonic() - begin:.0f} s; left out: {failing}", file=output)
    kills = Counter[str]()

    def in_order(found: Iterable[Test]) -> list[Test]:
        """Tests that have noticed mutants first, then one of each function, then a second one, up to the budget."""
        turns, seconds = Counter[str](), 0.0
        ranked: list[tuple[float, float, Test]] = []
        for test in sorted(found, key=lambda test: test.seconds):
            turn = turns[function := test.name.partition("[")[0]]
            turns[function] += 1
            ranked.append((turn if not kills[test.name] else -1, test.seconds / (1 + kills[test.name]), test))
        chosen = []
        for _, _, test in sorted(ranked, key=lambda item: item[:2]):
            seconds += test.seconds
            if seconds <= area.budget or not chosen:
                chosen.append(test)
        return chosen

    for file in area.files:
        begin, counts = time.monotonic(), Counter[str]()
        module = importlib.import_module(module_name(file))
        original = compile(area.sources[file], str(file), "exec", dont_inherit=True)
        functions = live_functions(str(file))
        of_file = [test for test in tests if any(path == str(file) for path, _ in test.lines)]
        for number, mutant in area.mutants(file):
            lines = {(str(file), line) for line in mutant.lines}
            covering = in_order(test for test in of_file if not lines.isdisjoint(test.lines))
            try:
                failure = suite.first_failure(covering, partial(swap, original, mutant.code, functions))
                runs_at_import = failure is None and not lines.isdisjoint(at_import.lines)
            except NotImplementedError:
                runs_at_import = True
                failure = suite.first_failure(in_order(of_file), partial(swap_values, module, mutant.code))
            if runs_at_import and not failure:
                counts["at import"] += 1
                yield AtImport(file, number, [test.name for test in in_order(of_file)])
            else:
                kills[failure or ""] += 1
                counts["noticed" if failure else "survived"] += 1
                outcome = Outcome(file, mutant.line, mutant.text, failure, len(covering))
                if not failure:
                    print(outcome, file=output)
                yield outcome
        print(f"{file.relative_to(PACKAGE)}: {dict(counts)}, {time.monotonic() - begin:.0f} s", file=output)
    # Those that noticed a mutant have to pass without one, in a fork and in another order than at first, too.
    failure = suite.first_failure([test for test in in_order(tests) if kills[test.name]])
    if failure:
        raise RuntimeError(f"{failure} fails without a mutant, and has noticed {kills[failure]}: mend it.")


def _try_at_import(area: Area, item: AtImport) -> Outcome:
    """Import a broken module, and run the tests of its file."""
    mutant = broken_codes(area.sources[item.file], str(item.file))[item.number]

    def session(report: Callable[[Any], None]) -> None:
        sys.meta_path.insert(0, Loader(module_name(item.file), item.file, mutant.code))

        def hold(suite: Suite) -> None:
            names = [name for name in item.tests if name in suite.items]
            missing = next((name for name in item.tests if name not in suite.items), None)
            report(missing or suite.first_failure([Test(name, seconds=10.0) for name in names]) or "passed")

        collect(sorted({str(ROOT / name.partition("::")[0]) for name in item.tests}), hold)

    failure = fork(session) if item.tests else "passed"
    return Outcome(
        item.file, mutant.line, mutant.text, None if failure == "passed" else failure or "import", len(item.tests)
    )


def module_name(file: Path) -> str:
    """Return the name of the module of a file."""
    return ".".join(("lightning_compress", *file.relative_to(PACKAGE).with_suffix("").parts))
