"""Globs over layer names for the parameter names and regular expressions of a SparseML recipe."""

from __future__ import annotations

import re

_ALL = ("__ALL__", "__ALL_PRUNABLE__")
_LIMIT = 64
# One element of a regular expression and its quantifier.
_PLAIN = r"(?:[^()\\|?*+\[\]{}^$]|\\.)+"
_TOKEN = re.compile(rf"(\\.|\[[^\]\\^]+\]|\((?:\?:)?{_PLAIN}(?:\|{_PLAIN})*\)|[^\\\[\](){{}}*+?|^$])([*+?]?)")


def layer_globs(name: str, module: str) -> list[str]:
    """Return globs over layer names for the name of a parameter or layer.

    Args:
        name: Name; a regular expression if it begins with ``re:``, which matches the beginning of a name.
        module: Name of the submodule of the LightningModule that has the layers, or an empty string.

    Returns:
        Globs that match the same layers; empty if there are none.

    >>> layer_globs("layer1.0.conv1.weight", "model"), layer_globs("re:.*attention.(key|value).weight", "")
    (['model.layer1.0.conv1'], ['*attention?key', '*attention?value'])
    """
    if name in _ALL:
        return ["*"]
    globs = _glob_of_regex(name[3:]) if name.startswith("re:") else [name.replace("[", "[[]")]
    prefix = f"{module}." if module else ""
    return [f"{prefix}{_without_parameter(glob)}" for glob in globs]


def _without_parameter(glob: str) -> str:
    """Return the layer's part of a glob over parameter names."""
    return re.sub(r"(?:[.?]|(?<=\*))weight\*?$", "", glob)


def _glob_of_regex(pattern: str) -> list[str]:
    pattern = pattern.removeprefix("^")
    # A pattern without an end matches every name that begins so.
    is_complete = pattern.endswith("$") and not pattern.endswith("\\$")
    globs, position = [""], 0
    pattern = pattern.removesuffix("$") if is_complete else pattern
    while position < len(pattern):
        found = _TOKEN.match(pattern, position)
        if found is None:
            return []
        position = found.end()
        choices = _element(found[1], found[2], is_last=position == len(pattern) and not is_complete)
        globs = [glob + choice for glob in globs for choice in choices]
        if not choices or len(globs) > _LIMIT:
            return []
    return [re.sub(r"\*+", "*", glob if is_complete else f"{glob}*") for glob in globs]


def _element(element: str, quantifier: str, *, is_last: bool) -> list[str]:
    """Return globs for one element of a regular expression; empty if there is none."""
    if element == ".":
        return {"": ["?"], "*": ["*"], "+": ["?*"], "?": ["", "?"]}[quantifier]
    if element.startswith("("):
        inner = element[1:-1].removeprefix("?:").split("|")
        choices = [choice for each in inner for choice in _literal(each)]
    elif element == r"\d":
        choices = ["[0-9]"]
    elif element.startswith("["):
        choices = [element]
    else:
        choices = _literal(element)
    if quantifier == "?":
        return ["", *choices]
    # Nothing more is needed of the last element of a beginning than that it occurs once, or not at all.
    if quantifier and is_last:
        return choices if quantifier == "+" else [""]
    if quantifier == "+" and element in (r"\d", "[0-9]"):
        return ["[0-9]", "[0-9][0-9]", "[0-9][0-9][0-9]"]
    return [] if quantifier else choices


def _literal(text: str) -> list[str]:
    """Return a glob for characters, of which an unescaped dot stands for any one; empty for a class of characters."""
    if re.search(r"\\[A-Za-z0-9]", text):
        return []
    return [re.sub(r"\\(.)|\.", lambda found: found[1] or "?", text)]
