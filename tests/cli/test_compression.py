"""Named keys for techniques, files that stack, a directory for every run."""

from pathlib import Path

import pytest
import torch
import yaml

import lightning_compress as lc
from lightning_compress.cli import CompressionCLI, main, run_directory

SPECIFICATIONS = ("sparsity", "pattern", "score", "schedule", "targets", "distribution", "growth", "rewind")


def build(*arguments: str) -> CompressionCLI:
    """Everything but the fit."""
    return CompressionCLI(args=["--config=small.yaml", *arguments], run=False)


def pruning(cli: CompressionCLI) -> lc.Pruning | None:
    found = [callback for callback in cli.trainer.callbacks if isinstance(callback, lc.Pruning)]
    assert len(found) <= 1
    return found[0] if found else None


def specification(cli: CompressionCLI) -> dict[str, object]:
    return {name: getattr(pruning(cli), name) for name in SPECIFICATIONS}


def test_the_arguments_are_the_key(recipe):
    assert pruning(build()).sparsity == 0.5
    assert pruning(build()).schedule == lc.Schedule(end=0.5)
    assert isinstance(build("--monitor={}").trainer.callbacks[1], lc.CompressionMonitor)


def test_every_technique_comes_with_a_monitor(recipe):
    def monitors(*arguments: str) -> list[lc.CompressionMonitor]:
        return [c for c in build(*arguments).trainer.callbacks if isinstance(c, lc.CompressionMonitor)]

    assert len(monitors()) == 1
    assert [monitor.per_layer for monitor in monitors("--monitor.per_layer=false")] == [False]
    assert not monitors("--pruning=null")


def test_absent_or_null_adds_nothing(recipe):
    assert pruning(build("--pruning=null")) is None
    recipe.write_text(recipe.read_text().replace("pruning:", "# pruning:"))
    assert pruning(build()) is None


def test_flags_override_the_file_one_by_one(recipe):
    cli = build("--pruning.sparsity=0.7", "--pruning.score=Taylor", "--pruning.targets.exclude=[model.features]")
    assert pruning(cli).sparsity == 0.7
    assert pruning(cli).score == lc.Taylor()
    assert pruning(cli).targets == lc.Targets(exclude=("model.features",))
    assert pruning(cli).schedule == lc.Schedule(end=0.5)


def test_a_backend_is_named(recipe):
    assert build("--quantization.backend=TensorRT").config_init.quantization.backend == lc.TensorRT()
    assert build("--quantization.weights.bits=4").config_init.quantization.backend == lc.OnnxRuntime()


def test_files_stack_in_any_order(recipe):
    Path("more.yaml").write_text("pruning: {score: {class_path: lightning_compress.Magnitude, init_args: {p: 2}}}")
    Path("callbacks.yaml").write_text("trainer: {callbacks: [{class_path: LearningRateMonitor}], logger: true}")
    after = build("--config=more.yaml", "--config=callbacks.yaml")
    before = CompressionCLI(args=[f"--config={name}.yaml" for name in ("callbacks", "more", "small")], run=False)
    assert specification(after) == specification(before)
    assert pruning(after).score == lc.Magnitude(p=2)


def test_a_technique_can_be_given_as_a_sweep_gives_it(recipe):
    recipe.write_text(recipe.read_text().replace("pruning:", "# pruning:"))
    cli = build("--pruning.sparsity=0.6", "--pruning.schedule.end=0.4", "--pruning.pattern=Channels")
    assert specification(cli) == {**specification(cli), "sparsity": 0.6, "pattern": lc.Channels()}
    assert pruning(cli).schedule.end == 0.4


def test_class_paths_in_callbacks_work_too(recipe):
    recipe.write_text(recipe.read_text().replace("pruning:", "# pruning:"))
    callback = "{class_path: lightning_compress.Pruning, init_args: {sparsity: 0.3, schedule: {end: 0.2}}}"
    cli = build(f"--trainer.callbacks=[{callback}]")
    assert pruning(cli).sparsity == 0.3


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--pruning.sparsity={'*.features': 0.5, '*': 0.25}", "--pruning.score=Movement", "--pruning.scope=layer"],
        ["--pruning.pattern=NM", "--pruning.pattern.n=2", "--pruning.pattern.m=4"],
        ["--pruning.schedule.begin=3ep", "--pruning.schedule.end=5ep", "--trainer.max_epochs=9"],
        ["--pruning.growth=RigL", "--pruning.distribution=ERK", "--pruning.targets.exclude=[a, b]"],
        ["--pruning.rewind=RewindWeights", "--pruning.rewind.to=1", "--monitor.per_layer=false"],
    ],
    ids=str,
)
def test_saved_configuration_builds_the_same(arguments, recipe):
    cli = build(*arguments)
    Path("small.yaml").write_text(cli.parser.dump(cli.config, skip_none=False))
    again = build()
    assert specification(again) == specification(cli)
    assert again.parser.dump(again.config) == cli.parser.dump(cli.config)


def test_print_config_can_be_run(recipe, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config=small.yaml", "--print_config"])
    assert exit_.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["pruning"]["sparsity"] == 0.5
    assert not Path("runs").exists()


def test_two_identical_runs_do_not_collide(recipe):
    for _ in range(2):
        main(["fit", "--config=small.yaml"])
    first, second = Path("runs/fit").iterdir()
    for run in (first, second):
        assert len(list(run.glob("checkpoints/*.ckpt"))) == 1
        assert yaml.safe_load((run / "config.yaml").read_text())["pruning"]["sparsity"] == 0.5


def test_fit_then_test_in_one_directory(recipe):
    place = "--trainer.default_root_dir=here"
    main(["fit", "--config=small.yaml", place])
    (checkpoint,) = Path("here/checkpoints").iterdir()
    before = Path("here/config.yaml").read_text()
    main(["test", "--config=small.yaml", f"--ckpt_path={checkpoint}", place])
    assert Path("here/config.yaml").read_text() == before
    assert Path("here/config-2.yaml").exists()
    assert not Path("runs").exists()


def test_a_saved_configuration_runs_again(recipe):
    main(["fit", "--config=small.yaml"])
    (first,) = Path("runs/fit").iterdir()
    main(["fit", f"--config={first}/config.yaml"])
    second = next(path for path in Path("runs/fit").iterdir() if path != first)
    weights = [torch.load(next(run.glob("checkpoints/*.ckpt")), weights_only=True) for run in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*(w["state_dict"].values() for w in weights), strict=True))
    assert (first / "config.yaml").read_text() == (second / "config.yaml").read_text()


def test_log_model_is_ignored_offline(recipe):
    logger = "{class_path: WandbLogger, init_args: {offline: true, log_model: all}}"
    with pytest.warns(UserWarning, match="log_model is ignored"):
        cli = build(f"--trainer.logger={logger}")
    assert cli.trainer.logger.save_dir == str(cli.directory)
    assert cli.trainer.checkpoint_callback.dirpath == str(cli.directory / "checkpoints")
    assert cli.config.trainer.logger.init_args.save_dir == "."  # what is kept can be run elsewhere
    assert cli.directory.is_dir()


def test_given_directories_are_kept(recipe):
    logger = "{class_path: CSVLogger, init_args: {save_dir: logs}}"
    checkpoint = "[{class_path: ModelCheckpoint, init_args: {dirpath: kept}}]"
    cli = build(f"--trainer.logger={logger}", f"--trainer.callbacks={checkpoint}")
    assert cli.trainer.logger.save_dir == "logs"
    assert cli.trainer.checkpoint_callback.dirpath == str(Path("kept").absolute())


def test_directories_are_unique(workdir, monkeypatch):
    names = iter(["aaa", "aaa", "bbb"])
    monkeypatch.setattr(run_directory.secrets, "token_hex", lambda _: next(names))

    class Stopped(run_directory.datetime):
        @classmethod
        def now(cls):
            return cls(2020, 1, 1)

    monkeypatch.setattr(run_directory, "datetime", Stopped)
    names_made = [run_directory.make_unique(Path("runs")).name for _ in range(2)]
    assert names_made == ["20200101-000000-aaa", "20200101-000000-bbb"]


def test_ranks_agree(workdir):
    mine = run_directory.run_directory("fit", rank=0)
    assert run_directory.run_directory("fit", rank=1) == mine
    assert run_directory.run_directory("fit", rank=0) != mine
