"""What imports what, and what the package shows of itself."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from lightning.pytorch import Callback

import lightning_compress

PACKAGE = Path(lightning_compress.__file__).parent
MODULES = {
    ".".join(("lightning_compress", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "recipes" not in path.relative_to(PACKAGE).parts
}

# Lower layers first. A room may import itself and rooms in layers before its own, not those beside it.
LAYERS = [
    ("arguments", "atomic_files", "functional", "mean_loss", "schedules", "serialization"),
    ("module_copies",),
    ("layer_kinds", "masked_norms", "sharded_modules"),
    ("targets",),
    ("data", "profiling"),
    ("constraints", "packing"),
    ("trainer",),
    ("channels", "clustering", "reporting"),
    ("models", "pruning", "quantization"),
    ("distillation", "export", "migration"),
    ("cli",),
]
TECHNIQUES = ("clustering", "distillation", "pruning", "quantization")
# Rooms that know Lightning, and the modules of other rooms that do; all else works where it is not installed.
LIGHTNING_ROOMS = ("cli", "data", "distillation", "migration", "models", "trainer")
LIGHTNING_MODULES = (
    "channels.shrunk",
    "clustering.callback",
    "clustering.masks_of_fit",
    "clustering.size_callback",
    "pruning.callback", "pruning.fixed", "pruning.model_channel_groups", "pruning.recalibration", "pruning.snapshot",
    "quantization.callback", "quantization.graph_tracer", "quantization.model_preparation",
    "quantization.quantization_checks", "quantization.quantizer_checkpoint", "quantization.unquantized_copies",
    "reporting.logger_media", "reporting.monitor",
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
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def room(module: str) -> str:
    return module.partition(".")[2]


def knows_lightning(module: str) -> bool:
    return part(module) in ("", "__main__", *LIGHTNING_ROOMS) or room(module) in LIGHTNING_MODULES


def own_imports(module: str) -> set[str]:
    """Modules of the package that a module imports, under ``TYPE_CHECKING`` and in functions too."""
    return {name for name in imports(MODULES[module]) if name in MODULES and name != module}


def test_imports_point_downwards() -> None:
    ranks = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
    upwards = [
        f"{module} imports {name}"
        for module in MODULES
        for name in own_imports(module)
        if part(module) in ranks and part(name) in ranks and part(name) != part(module)
        if ranks[part(name)] >= ranks[part(module)]
    ]
    assert not upwards, "\n".join(upwards)


def test_every_room_has_its_layer() -> None:
    listed = {name for layer in LAYERS for name in layer}
    assert {part(module) for module in MODULES} - {"", "__main__"} == listed


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: own_imports(module) for module in MODULES if part(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_technique_needs_another() -> None:
    crossing = [
        f"{module} imports {name}"
        for module in MODULES
        if part(module) in TECHNIQUES
        for name in own_imports(module)
        if part(name) in TECHNIQUES and part(name) != part(module)
    ]
    assert not crossing, "\n".join(crossing)


def test_only_listed_modules_know_lightning() -> None:
    assert set(LIGHTNING_MODULES) <= {room(module) for module in MODULES}, "a listed module is gone"
    strangers = [
        f"{module} imports {name}"
        for module in MODULES
        if not knows_lightning(module)
        for name in imports(MODULES[module])
        if begins_with(name, "lightning", "pytorch_lightning", "timm", "wandb")
        or (name in MODULES and knows_lightning(name))
    ]
    assert not strangers, "\n".join(strangers)


def test_functional_is_torch_and_the_standard_library() -> None:
    for module in MODULES:
        if part(module) == "functional":
            for name in imports(MODULES[module]):
                assert begins_with(name, "torch", "lightning_compress.functional", *sys.stdlib_module_names), name


def test_nobody_imports_what_is_forbidden() -> None:
    for module, path in MODULES.items():
        for name in imports(path):
            assert not begins_with(name, "torch.ao", "torchao.sparsity", "pytorch_lightning"), f"{module}: {name}"
            assert not begins_with(name, "torch.nn.utils.prune"), f"{module}: {name}"
            knows_wandb = part(module) == "cli" or room(module) == "reporting.logger_media"
            assert knows_wandb or not begins_with(name, "wandb"), f"{module}: {name}"


def test_modules_are_copied_in_one_place() -> None:
    """Elsewhere deepcopy is for states and loaders, and for the ``__deepcopy__`` of a class."""
    allowed = {
        "module_copies", "distillation.peer", "pruning.snapshot", "quantization.call_patcher", "trainer.loaders",
    }  # fmt: skip
    found = {room(module) for module, path in MODULES.items() if re.search(r"\bdeepcopy\(", path.read_text())}
    assert found <= allowed, sorted(found - allowed)


def test_callback_classes_are_flat() -> None:
    """At most three classes of our own from Lightning's ``Callback`` down to one that users write."""
    classes = {
        value
        for module in MODULES
        if knows_lightning(module) and not module.endswith("__main__")
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, type)
        and issubclass(value, Callback)
        and begins_with(value.__module__, "lightning_compress")
    }
    assert lightning_compress.Pruning in classes
    for value in classes:
        own = [base for base in value.__mro__ if begins_with(base.__module__, "lightning_compress")]
        assert len(own) <= 3, own


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


def test_without_lightning_and_without_warnings() -> None:
    """In one interpreter, since imports take seconds: modules that work without Lightning first, then all others."""
    modules = [name for name in MODULES if not name.endswith("__main__")]
    first = [name for name in modules if not knows_lightning(name)]
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


def test_public_names_resolve_and_are_documented() -> None:
    for name in lightning_compress.__all__:
        value = getattr(lightning_compress, name)
        assert getattr(lightning_compress, name) is value
        assert getattr(importlib.import_module(value.__module__), name) is value
        assert value.__module__.startswith("lightning_compress."), f"{name} is defined elsewhere"
        # Not the signature that dataclasses write where there is no docstring.
        assert value.__doc__, f"{name} has no docstring"
        assert not value.__doc__.startswith(f"{name}("), f"{name} has no docstring"
        assert value.__doc__.split("\n")[0].rstrip().endswith((".", ":")), f"{name}: its first line is no sentence"


def test_public_names_have_examples_that_run() -> None:
    """``test_doctests.py`` runs them; of a skipped one, only what needs an extra is skipped."""
    finder = doctest.DocTestFinder(recurse=False)
    for name in lightning_compress.__all__:
        value = getattr(lightning_compress, name)
        examples = [e for test in finder.find(value, name) for e in test.examples]
        assert examples, f"{name} has no example"
        skipped = [e for e in examples if e.options.get(doctest.SKIP)]
        assert not skipped or name in ("export_coreml", "export_executorch", "export_litert", "export_openvino"), (
            f"{name}: its example is skipped"
        )


def test_public_names_are_annotated() -> None:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name in lightning_compress.__all__:
        for p in inspect.signature(getattr(lightning_compress, name)).parameters.values():
            assert p.annotation is not inspect.Parameter.empty or p.kind in variable, f"{name}: {p.name}"


def test_public_names_have_their_types_for_mypy(tmp_path: Path) -> None:
    file, config = tmp_path / "names.py", tmp_path / "mypy.ini"
    names = lightning_compress.__all__
    file.write_text("import lightning_compress as lc\n" + "".join(f"reveal_type(lc.{name})\n" for name in names))
    # Libraries are skipped: only the package's own annotations are asked for, and torch alone takes a minute.
    libraries = ("torch", "lightning", "timm", "torchvision", "torchmetrics", "numpy", "rich", "wandb")
    skipped = "".join(f"[mypy-{library}.*]\nfollow_imports = skip\n" for library in libraries)
    config.write_text(f"[mypy]\ncache_dir = {tmp_path}\nignore_missing_imports = true\n{skipped}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=600)
    revealed = re.findall(r'names.py:\d+: note: Revealed type is "(.*)"', result.stdout)
    assert len(revealed) == len(names), result.stdout
    for name, kind in zip(names, revealed, strict=True):
        value = getattr(lightning_compress, name)
        assert kind != "Any", name
        if inspect.isclass(value):
            assert f"{value.__module__}.{name}" in kind, f"{name} is revealed as {kind}"
        else:
            assert kind.startswith(("def ", "Overload(")), f"{name} is revealed as {kind}"


def test_the_old_name_of_a_renamed_class_still_works() -> None:
    with pytest.warns(FutureWarning, match=r"lc\.Mixing is now lc\.Mixup"):
        assert lightning_compress.Mixing is lightning_compress.Mixup


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Prunning'"):
        _ = lightning_compress.Prunning


def test_every_module_has_a_docstring() -> None:
    assert not [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))]
