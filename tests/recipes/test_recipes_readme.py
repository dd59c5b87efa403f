"""recipes/README.md: lists every recipe, and its commands and examples are valid."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_compress.cli import CompressionCLI
from lightning_compress.cli.recipes import find
from lightning_compress.cli.runs import RunCLI
from lightning_compress.cli.sensitivity_command import SensitivityCLI

ROOT = Path(__file__).parents[2]
README = ROOT / "recipes/README.md"
TEXT = README.read_text()
RECIPES = sorted(p for p in (ROOT / "recipes").glob("**/*.yaml") if p.parent.name != "sweeps")
_COMMAND = r"^lightning-compress (?:run|fit) .+|(?<=`)lightning-compress (?:run|fit|sensitivity) [^`]+"
COMMANDS = sorted(set(re.findall(_COMMAND, TEXT, re.MULTILINE)))
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)

MODULES = """
import lightning_compress as lc
from lightning_compress.data import DigitsDataModule as MyDataModule

class MyModule(lc.ClassificationModule):
    def __init__(self, checkpoint: str):
        super().__init__("conv4", 10, checkpoint=checkpoint)
"""


class ParsedError(Exception):
    """Raised in place of building the objects of a valid configuration."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Path:
    """Stops every command after its configuration has been parsed; the files that the README mentions exist."""

    def stop(self: CompressionCLI) -> None:
        raise ParsedError

    monkeypatch.setattr(CompressionCLI, "before_instantiate_classes", stop)
    monkeypatch.syspath_prepend(str(workdir))
    (workdir / "my_package.py").write_text(MODULES)
    (workdir / "clustering.yaml").write_text("clustering: {num_clusters: 16}\n")
    for name in ("mine.yaml", "runs/NAME/TIME/config.yaml"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "recipes/digits/prune.yaml", workdir / name)
    return workdir


def test_every_recipe_is_listed_with_its_command() -> None:
    rows = dict(re.findall(r"^\| \[.+\]\((.+\.yaml)\) \| [^|]+ \| `(.+)` \|$", TEXT, flags=re.MULTILINE))
    assert sorted(rows) == [path.relative_to(README.parent).as_posix() for path in RECIPES]
    for name, command in rows.items():
        header = (README.parent / name).read_text().partition("\n\n")[0]
        assert command in re.findall(r"^#   (.+?)(?:  .+)?$", header, flags=re.MULTILINE)


def parse(name: str, *arguments: str) -> None:
    """Builds the CLI object of a command line."""
    match name:
        case "run":
            RunCLI(args=[f"--config={find(arguments[0])}", *arguments[1:]], run=False)
        case "fit":
            CompressionCLI(args=["fit", *arguments])
        case "sensitivity":
            SensitivityCLI(args=[*arguments], run=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_valid(command: str, parse_only: Path) -> None:
    arguments = [argument for argument in shlex.split(command)[1:] if argument != "--print_config"]
    with pytest.raises(ParsedError):
        parse(*arguments)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples_are_valid(block: str, parse_only: Path) -> None:
    Path("example.yaml").write_text(block)
    complete = [] if "model" in yaml.safe_load(block) else ["--config=mine.yaml"]
    with pytest.raises(ParsedError):
        RunCLI(args=[*complete, "--config=example.yaml"], run=False)


def test_links_lead_to_files() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT)}
    assert links
    assert not [link for link in links if not (README.parent / link).is_file()]


def test_there_are_commands_and_examples() -> None:
    assert len(COMMANDS) > len(RECIPES)
    assert len(BLOCKS) >= 3


def test_benchmark_commands_have_a_script_and_its_options() -> None:
    commands = re.findall(r"`(\w+\.py)( [^`]+)?`", TEXT)
    assert len(commands) > 10
    for script, arguments in commands:
        source = (ROOT / "tests/benchmarks" / script).read_text() + (ROOT / "tests/benchmarks/cifar10.py").read_text()
        for option in re.findall(r"--[\w-]+", arguments):
            assert f'"{option}"' in source, f"{script} {option}"
