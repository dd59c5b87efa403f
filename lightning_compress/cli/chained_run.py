"""A stage that runs other recipes first, and goes on where the same command was cut off."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_compress.cli.compression import rank
from lightning_compress.cli.cut_chains import (
    find_cut_run,
    finished_metrics,
    hold,
    is_cut,
    recipe_digest,
    release,
    tell_ranks,
    told_to_go_on,
    write_stage,
)
from lightning_compress.cli.recipes import find
from lightning_compress.cli.run_directory import adopt_directory
from lightning_compress.cli.stage_cli import StageCLI


class ChainedRun(StageCLI):
    """StageCLI with recipes that are run before it, each in a directory inside that of the run.

    A finished stage is noted in a file. If the process is ended early, the same command finds the run again, and does
    not run finished stages a second time.

    Attributes:
        goes_on: True if the directory is that of a run that was cut off.
    """

    goes_on: bool = False

    @property
    def recipe_directories(self) -> list[Path]:
        """Directories of the recipes of this run, in which the recipes that they name are looked for."""
        given = self._get(self.config, "config") or []
        return [Path(str(path)).absolute().parent for path in given if path]

    @property
    def earlier_recipes(self) -> list[Path]:
        """Recipes that are run first."""
        arguments = self.config.model.get("init_args") or Namespace()
        teacher = self.config.teacher if arguments.get("teacher") is None else None
        named = [name for name in (self.config.after, teacher) if name and not Path(name).is_dir()]
        return [find(name, near=self.recipe_directories) for name in named]

    # Once, before the configuration is completed with paths.
    @cached_property
    def digest(self) -> str:
        """Digest of the configuration and of the recipes that are run first."""
        config = self.config.clone()
        config.pop("config", None)
        found = hashlib.sha256(self.parser.dump(config, skip_none=False).encode())
        for recipe in self.earlier_recipes:
            found.update(self.digest_of(recipe).encode())
        return found.hexdigest()

    def digest_of(self, recipe: Path) -> str:
        """Return the digest of a recipe that is run first."""
        return recipe_digest(recipe, self.recipe_directories)

    def make_directory(self) -> Path:
        """Return the directory of a cut run of the same configuration, or create a new one."""
        if not self.earlier_recipes:
            return super().make_directory()
        if rank() > 0:
            self.goes_on = told_to_go_on()
            return super().make_directory()
        found = find_cut_run(Path("runs").absolute() / str(self.run_name), self.digest)
        self._go_on(found)
        return super().make_directory() if found is None else adopt_directory(found)

    def prepare_config(self, config: Namespace) -> None:
        """Go on in the directory that was given, if the same command was cut off there."""
        super().prepare_config(config)
        if config.trainer.default_root_dir and self.earlier_recipes:
            if rank() > 0:
                self.goes_on = told_to_go_on()
            else:
                can_go_on = is_cut(self.directory, self.digest) and hold(self.directory)
                self._go_on(self.directory if can_go_on else None)

    def finished_stage(self, name: str, recipe: Path) -> dict[str, Any] | None:
        """Return the metrics of a stage that was finished before this run was cut off, or ``None``.

        Args:
            name: Name of its directory inside that of this run.
            recipe: Its recipe.
        """
        return finished_metrics(self.directory / name, self.digest_of(recipe)) if self.goes_on else None

    def note_stage(self, directory: Path, recipe: Path, metrics: Mapping[str, Any]) -> None:
        """Note that a stage is finished.

        Args:
            directory: Its directory.
            recipe: Its recipe.
            metrics: Metrics that this run needs.
        """
        if rank() == 0:
            write_stage(directory, self.digest_of(recipe), is_finished=True, metrics=metrics)
            self.note_progress()

    def note_progress(self) -> None:
        """Note that a run of this configuration has got somewhere, so that the same command finds it."""
        write_stage(self.directory, self.digest, is_finished=False)
        hold(self.directory)

    def note_end(self) -> None:
        """Note that the run is finished."""
        if rank() == 0 and self.earlier_recipes:
            write_stage(self.directory, self.digest, is_finished=True)
            release(self.directory)

    def _go_on(self, directory: Path | None) -> None:
        self.goes_on = directory is not None
        tell_ranks(self.goes_on)
        if directory is not None:
            print(
                f"lightning-compress: going on with {directory}, which was cut off; its finished stages are not run "
                "again (delete the directory to start anew).",
                file=sys.stderr,
            )
