"""``lightning-compress``: dispatch, and recipes found and copied."""

import subprocess
import sys
from pathlib import Path

import pytest

import lightning_compress
from lightning_compress.cli import main, recipes
from lightning_compress.cli.command import COMMANDS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
    main(arguments)
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_unknown_command(error_message):
    assert error_message("fitt").startswith("Unknown command 'fitt' (did you mean 'fit'?): choose one of run, doctor")


def test_help_loads_no_torch(workdir):
    program = "import sys; from lightning_compress.cli import main; main(['recipes']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_classes_of_the_working_directory_can_be_named(recipe):
    Path("mine.py").write_text(
        "import lightning_compress as lc\n\nclass Mine(lc.ClassificationModule):\n    tested = []\n\n"
        "    def on_test_end(self):\n        Mine.tested.append(1)\n"
    )
    main(["test", "--config=small.yaml", "--model.class_path=mine.Mine"])
    assert sys.modules["mine"].Mine.tested == [1]


def test_recipes_are_listed_with_their_first_line(workdir, capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("digits/prune ") and "90 %" in line for line in lines)


def test_copy_does_not_overwrite(error_message, workdir, capsys):
    main(["recipes", "copy", "digits/prune"])
    assert "prune.yaml" in capsys.readouterr().out
    original = Path("prune.yaml").read_text()
    assert original.startswith("# ")
    Path("prune.yaml").write_text("edited")
    assert "prune.yaml already exists" in error_message("recipes", "copy", "digits/prune")
    assert Path("prune.yaml").read_text() == "edited"
    main(["recipes", "copy", "digits/prune.yaml", "deep/my.yaml"])
    assert Path("deep/my.yaml").read_text() == original


def test_wrong_usage_of_recipes(error_message):
    assert "recipes copy NAME [DEST]" in error_message("recipes", "copyy", "digits/prune")
    assert "did you mean 'digits/prune'" in error_message("recipes", "copy", "digit/prune")


@pytest.mark.parametrize("name", ["recipes/digits/prune.yaml", "digits/prune.yaml", "digits/prune"])
def test_recipes_are_found_by_any_name(name, workdir):
    found = recipes.find(name)
    assert found.name == "prune.yaml"
    assert recipes.run_name_of(found) == "digits-prune"


def test_the_working_directory_comes_first_then_the_repository(workdir, monkeypatch):
    (workdir / ".git").mkdir()
    ours = workdir / "recipes/digits/prune.yaml"
    ours.parent.mkdir(parents=True)
    ours.write_text("# ours\n")
    inner = workdir / "a/b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert recipes.find("digits/prune") == ours
    (inner / "digits").mkdir()
    (inner / "digits/prune.yaml").write_text("# nearer\n")
    assert recipes.find("digits/prune.yaml").read_text() == "# nearer\n"


def test_the_installed_package_comes_last(workdir, monkeypatch):
    packaged = workdir / "site/lightning_compress/recipes/x/y.yaml"
    packaged.parent.mkdir(parents=True)
    packaged.write_text("# packaged\n")
    monkeypatch.setattr(lightning_compress, "__file__", str(workdir / "site/lightning_compress/__init__.py"))
    assert recipes.find("recipes/x/y.yaml") == packaged
    assert list(recipes.available()) == ["x/y"]


def test_an_unknown_recipe_lists_the_available_ones(error_message):
    message = error_message("run", "digits/prun")
    assert "did you mean 'digits/prune'" in message
    assert "cifar10/prune" in message
    assert "run requires a recipe" in error_message("run")
    assert "run requires a recipe" in error_message("run", "--pruning.sparsity=0.5")
