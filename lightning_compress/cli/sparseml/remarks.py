"""Sentences on parts of a recipe that have no counterpart, each once."""

from __future__ import annotations


class Remarks:
    """Messages without repetitions.

    >>> remarks = Remarks()
    >>> for _ in range(2):
    ...     remarks.add("It has no counterpart.")
    >>> remarks.messages
    ('It has no counterpart.',)
    """

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}

    @property
    def messages(self) -> tuple[str, ...]:
        """All sentences in their order."""
        return tuple(self._sentences)

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self._sentences.setdefault(" ".join(sentence.split()))
