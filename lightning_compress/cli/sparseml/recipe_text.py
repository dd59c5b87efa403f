"""Modifiers of a SparseML recipe, from its text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from lightning_compress.cli.sparseml.arithmetic import UndefinedVariableError, evaluate

_MAX_VALUES = 100_000
_FRONT_MATTER = re.compile(r"^---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_EVAL = re.compile(r"eval\((.*)\)$", re.DOTALL)
_SUFFIX = "Modifier"


@dataclass(frozen=True)
class RecipeModifier:
    """One modifier of a recipe.

    Attributes:
        name: Class name, such as ``"GMPruningModifier"``.
        arguments: Arguments by name.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def number(self, *names: str, default: float | None = None) -> float:
        """Return an argument as a number; YAML reads some, such as ``1e-3``, as text.

        Args:
            names: Names of the argument, of which the first that is given counts.
            default: Value if none is given.

        Raises:
            ValueError: If it is not a number, or neither given nor optional.
        """
        name = next((name for name in names if self.arguments.get(name) is not None), None)
        if name is None:
            if default is None:
                raise ValueError(f"{self.name}: {names[0]} is missing")
            return default
        try:
            return float(self.arguments[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.name}: {name}={self.arguments[name]!r} must be a number") from error

    def texts(self, *names: str) -> list[str]:
        """Return an argument as a list of strings; empty if it is not given.

        Raises:
            ValueError: If it is neither a string nor a list of strings.
        """
        name = next((name for name in names if self.arguments.get(name) is not None), names[0])
        given = self.arguments.get(name)
        values = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.name}: {name}={given!r} must be a list of names")
        return values


def read_modifiers(text: str) -> list[RecipeModifier]:
    """Read the modifiers of a recipe: YAML, or Markdown with YAML between lines of ``---``.

    Variables are resolved: anchors, ``eval(a + b)``, and ``{{ a + b }}``.

    Args:
        text: Text of the file.

    Raises:
        ValueError: If it cannot be read, or has no modifier.

    >>> read_modifiers('''
    ... epochs: 8
    ... modifiers:
    ...   - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(2 * epochs)}
    ... ''')
    [RecipeModifier(name='EpochRangeModifier', arguments={'start_epoch': 0, 'end_epoch': 16})]
    """
    front = _FRONT_MATTER.search(text)
    text = _TEMPLATE.sub(lambda found: f"eval({found[1].strip()})", front[1] if front else text)
    try:
        tree = yaml.load(text, Loader=_RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"the YAML cannot be parsed{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"the YAML cannot be parsed: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError("it is not a recipe, which has keys such as training_modifiers")
    try:
        found = list(_modifiers(_resolved(tree, {}, [0]), ""))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not found:
        raise ValueError("it has no modifier, such as !GMPruningModifier")
    return found


class _RecipeLoader(yaml.SafeLoader):
    """Loader that makes a :class:`RecipeModifier` of a tag such as ``!GMPruningModifier``."""


def _construct(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> RecipeModifier:
    # "!pytorch.GMPruningModifier" names a framework too.
    name = name.rpartition(".")[2]
    if isinstance(node, yaml.MappingNode):
        return RecipeModifier(name, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.ScalarNode) and not node.value:
        return RecipeModifier(name)
    raise ValueError(f"the arguments of {name} must be keys below it")


_RecipeLoader.add_multi_constructor("!", _construct)


def _resolved(tree: dict[str, Any], outer: Mapping[str, Any], count: list[int]) -> dict[str, Any]:
    """Return a tree with its expressions computed; a stage has the variables of the recipe around it."""
    _count(count)
    variables = _variables({**outer, **{name: value for name, value in tree.items() if isinstance(name, str)}})
    return {
        key: _resolved(value, variables, count) if _is_stage(key, value) else _computed(value, variables, count)
        for key, value in {**tree, **{key: variables[key] for key in tree if key in variables}}.items()
    }


def _count(count: list[int]) -> None:
    # Aliases may refer to one value in very many places.
    count[0] += 1
    if count[0] > _MAX_VALUES:
        raise ValueError(f"it has more than {_MAX_VALUES:,} values")


def _variables(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return variables with their values; each may be computed from others, in any order."""
    found = {name: value for name, value in given.items() if not _expression(value)}
    pending = {name: value for name, value in given.items() if _expression(value)}
    while pending:
        problems = {}
        for name, value in [*pending.items()]:
            try:
                found[name] = evaluate(_expression(value), found)
                del pending[name]
            except UndefinedVariableError as error:
                problems[name] = str(error)
        if problems and len(problems) == len(pending):
            name, problem = next(iter(problems.items()))
            is_cycle = all(any(f"{other!r}" in text for other in pending) for text in problems.values())
            raise ValueError(f"the variable {name!r} depends on itself" if is_cycle else f"{name}: {problem}")
    return found


def _computed(value: Any, variables: Mapping[str, Any], count: list[int]) -> Any:
    _count(count)
    if expression := _expression(value):
        return evaluate(expression, variables)
    if isinstance(value, RecipeModifier):
        return RecipeModifier(value.name, _computed(value.arguments, variables, count))
    if isinstance(value, dict):
        return {key: _computed(item, variables, count) for key, item in value.items()}
    if isinstance(value, list):
        return [_computed(item, variables, count) for item in value]
    return value


def _expression(value: Any) -> str:
    found = _EVAL.match(value.strip()) if isinstance(value, str) else None
    return found[1].strip() or "()" if found else ""


def _is_stage(key: Any, value: Any) -> bool:
    return isinstance(value, dict) and not str(key).endswith((_SUFFIX, "modifiers"))


def _modifiers(value: Any, key: str) -> Iterator[RecipeModifier]:
    """Yield modifiers: tagged ones in lists, and mappings under the name of a modifier."""
    if isinstance(value, RecipeModifier):
        yield value
    elif key.endswith(_SUFFIX) and (value is None or isinstance(value, dict)):
        yield RecipeModifier(key, value or {})
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _modifiers(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _modifiers(item, "")
