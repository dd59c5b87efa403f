"""Lists of tensor names in few bytes.

Networks repeat their blocks, so the names of a block are those of an earlier one with a number increased.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_compress.packing.streams import checked_int

_NUMBER = re.compile("[0-9]+")
_MAX_CANDIDATES = 64  # latest earlier names that are compared with each name
_MAX_DIGITS = 9  # of numbers that are increased; no layer has a larger one
_MIN_RUN = 2  # names from which a copy is shorter than the names
_MAX_INTEGER = 2**31 - 1
_MAX_CHARACTERS = 2**24  # of all names; copies of copies could otherwise fill the memory


def shorten_names(names: Sequence[str]) -> list[Any]:
    """Return names as a list of names and of copies of earlier ones.

    A copy is a list of distance, number of names, index of the number to increase and increment.

    >>> shorten_names(["a.0.w", "a.0.b", "a.1.w", "a.1.b", "a.2.w", "a.2.b"])
    ['a.0.w', 'a.0.b', [2, 4, 0, 1]]
    """
    places: dict[str, list[int]] = defaultdict(list)
    items: list[Any] = []
    done = 0
    while done < len(names):
        run, copy = max(_copies(names, done, places), default=(0, None))
        items.append(names[done] if copy is None else copy)
        stop = done + max(run, 1)
        for place in range(done, stop):
            places[_NUMBER.sub("0", names[place])].append(place)
        done = stop
    return items


def _copies(names: Sequence[str], start: int, places: dict[str, list[int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield the number of names, and the copy, of each possible copy."""
    for place in places.get(_NUMBER.sub("0", names[start]), [])[-_MAX_CANDIDATES:]:
        before, after = (_NUMBER.findall(names[k]) for k in (place, start))
        changed = [k for k, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        if len(changed) != 1 or max(len(before[changed[0]]), len(after[changed[0]])) > _MAX_DIGITS:
            continue
        index, increment, stop = changed[0], int(after[changed[0]]) - int(before[changed[0]]), start
        while stop < len(names) and names[stop] == _increase(names[stop - start + place], index, increment):
            stop += 1
        if stop - start >= _MIN_RUN and increment > 0:
            yield stop - start, [start - place, stop - start, index, increment]


def _increase(name: str, index: int, increment: int) -> str | None:
    """Return a name with a number increased, or ``None`` if it has too few numbers."""
    found = next((m for k, m in enumerate(_NUMBER.finditer(name)) if k == index), None)
    if found is None or len(found.group()) > _MAX_DIGITS:
        return None
    return f"{name[: found.start()]}{int(found.group()) + increment}{name[found.end() :]}"


def restore_names(items: Any) -> list[str]:
    """Return the names from which :func:`shorten_names` made the list.

    Raises:
        ValueError: If the list is damaged.
    """
    if not isinstance(items, list):
        raise ValueError("the names of the index must be a list")
    names: list[str] = []
    num_characters = 0
    for item in items:
        for name in [item] if isinstance(item, str) else _copied(item, names):
            num_characters += len(name) + 1
            if num_characters > _MAX_CHARACTERS:
                raise ValueError("the names of the index are longer than those of any model")
            names.append(name)
    return names


def _copied(item: Any, names: list[str]) -> Iterator[str]:
    """Yield the names of a copy; those yielded are expected to be appended to ``names``."""
    if not isinstance(item, list) or len(item) != 4:
        raise ValueError("a name of the index must be a string or a copy")
    distance, num_names, index, increment = (checked_int(value, at_most=_MAX_INTEGER) for value in item)
    for _ in range(num_names):
        name = _increase(names[-distance], index, increment) if 1 <= distance <= len(names) else None
        if name is None:
            raise ValueError("a name of the index is a copy of none")
        yield name
