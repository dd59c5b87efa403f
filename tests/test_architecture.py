"""What imports what, and what the package shows of itself."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_compress

PACKAGE = Path(lightning_compress.__file__).parent
MODULES = {
    ".".join(("lightning_compress", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "recipes" not in path.relative_to(PACKAGE).parts
}

# Lower layers first. A part may import itself and those in layers before its own, not those beside it.
LAYERS = [
    ("calls", "files", "functional", "plain", "schedules", "targets"),
    ("constraints", "packing", "structure"),
    ("clustering", "distillation", "pruning", "quantization"),
    ("networks", "reporting"),
    ("callbacks", "catalogue", "data", "export"),
    ("modules",),
    ("migration",),
    ("cli",),
]
TORCH_ONLY = (
    "calls", "clustering", "constraints", "distillation", "files", "functional", "packing", "plain", "pruning",
    "quantization", "schedules", "structure", "targets",
)  # fmt: skip


def part(module: str) -> str:
    """The first name below the package: ``"functional"`` of ``lightning_compress.functional.select``."""
    return ([*module.split("."), ""])[1]


def imports(path: Path) -> set[str]:
    """Names that a file imports, anywhere in it; of ``from a import b`` both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def begins_with(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def in_a_fresh_interpreter(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    ranks = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
    if part(module) not in ranks:
        return
    for name in imports(MODULES[module]):
        if begins_with(name, "lightning_compress") and part(name) in ranks:
            below = ranks[part(name)] < ranks[part(module)]
            assert below or part(name) == part(module), f"{module} imports {name}, which does not stand below it"


def test_every_part_has_its_layer() -> None:
    listed = {name for layer in LAYERS for name in layer}
    assert {part(module) for module in MODULES} - {"", "__main__"} <= listed


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) in TORCH_ONLY])
def test_mathematics_knows_no_trainer(module: str) -> None:
    strangers = [
        n for n in imports(MODULES[module]) if begins_with(n, "lightning", "pytorch_lightning", "timm", "wandb")
    ]
    assert not strangers


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) == "functional"])
def test_functional_is_torch_and_the_standard_library(module: str) -> None:
    for name in imports(MODULES[module]):
        assert begins_with(name, "torch", "lightning_compress.functional", *sys.stdlib_module_names), name


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_what_is_forbidden(module: str) -> None:
    for name in imports(MODULES[module]):
        assert not begins_with(name, "torch.ao", "torchao.sparsity", "pytorch_lightning"), name
        assert not begins_with(name, "torch.nn.utils.prune"), name
        if part(module) not in ("cli", "loggers"):
            assert not begins_with(name, "wandb"), name


def test_the_rules_see_what_breaks_them(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import lightning.pytorch as pl\nfrom torch import ao\ndef f():\n    from lightning_compress.cli import main\n"
    )
    assert {"lightning.pytorch", "torch.ao", "lightning_compress.cli", "lightning_compress.cli.main"} <= imports(file)
    assert begins_with("torch.ao.nn", "torch.ao")
    assert not begins_with("torch.aoe", "torch.ao")


def test_the_package_itself_is_cheap() -> None:
    loaded = in_a_fresh_interpreter(
        "import sys; before = set(sys.modules); import lightning_compress; dir(lightning_compress)\n"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    heavy = ("torch", "lightning", "numpy", "timm", "wandb", "jsonargparse", "rich")
    assert not [name for name in loaded if begins_with(name, *heavy)]
    assert len([name for name in loaded if begins_with(name, "lightning_compress")]) == 1


def test_torch_only_parts_load_no_lightning_and_no_module_warns_when_it_is_imported() -> None:
    """In one interpreter, since imports take seconds: those of torch-only parts first, then all others."""
    modules = [name for name in MODULES if not name.endswith("__main__")]
    first = [name for name in modules if part(name) in TORCH_ONLY]
    # Only warnings that our own lines give rise to: those of libraries among themselves are not ours.
    loaded = in_a_fresh_interpreter(
        "import sys, warnings, importlib\n"
        "for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):\n"
        "    warnings.filterwarnings('error', category=kind, module='lightning_compress')\n"
        f"for name in {first!r}:\n    importlib.import_module(name)\n"
        "print(*sys.modules)\n"
        f"for name in {modules!r}:\n    importlib.import_module(name)"
    ).split()
    assert not [name for name in loaded if begins_with(name, "lightning", "wandb", "timm")]
    assert {"torch", *first} <= {*loaded}


def test_public_names_are_sorted_and_listed() -> None:
    assert lightning_compress.__all__ == sorted(set(lightning_compress.__all__))
    assert dir(lightning_compress) == lightning_compress.__all__


@pytest.mark.parametrize("name", lightning_compress.__all__)
def test_public_names_resolve_and_say_what_they_are(name: str) -> None:
    value = getattr(lightning_compress, name)
    assert getattr(lightning_compress, name) is value
    assert value.__module__.startswith("lightning_compress."), "defined elsewhere"
    assert value.__doc__, f"{name} has no docstring"
    # Not the signature that dataclasses write where there is none.
    assert not value.__doc__.startswith(f"{name}("), f"{name} has no docstring"
    assert value.__doc__.split("\n")[0].rstrip().endswith((".", ":", "?")), f"{name}: its first line is no sentence"


@pytest.mark.parametrize("name", lightning_compress.__all__)
def test_public_names_are_annotated(name: str) -> None:
    value = getattr(lightning_compress, name)
    parameters = inspect.signature(value).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [p.name for p in parameters if p.annotation is inspect.Parameter.empty and p.kind not in variable]
    assert not missing


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Prunning'"):
        _ = lightning_compress.Prunning


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_public_values_are_importable_from_where_they_say() -> None:
    for name in lightning_compress.__all__:
        value = getattr(lightning_compress, name)
        assert getattr(importlib.import_module(value.__module__), name) is value
