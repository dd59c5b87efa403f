"""The command ``run``: fit, test, report and baseline."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import lightning_compress as lc
from lightning_compress.cli import main
from lightning_compress.cli.attempts import Attempts
from lightning_compress.cli.stage_cli import StageCLI
from lightning_compress.reporting.run_report import read_report
from lightning_compress.reporting.run_summary import headline
from tests.fits import finished_records

ROOT = Path(__file__).parents[2]
WANDB = "--trainer.logger={class_path: WandbLogger, init_args: {project: tests, offline: true}}"
BEST = "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {monitor: val/acc, mode: max}}]"


def the_run(name: str = "small") -> Path:
    (run,) = Path("runs", name).iterdir()
    return run


def titles(run: Path) -> list[str]:
    """Titles of the models in the report of a run."""
    return [model.title for model in read_report(run)[1].models]


def test_fits_tests_and_reports(recipe, capsys):
    main(["run", "small.yaml", WANDB, BEST, "--baseline=fit", "--monitor={}"])
    printed = capsys.readouterr().out
    run = the_run()
    assert str(run.absolute()) in printed
    for part in ("dense baseline", "fitted", "packed file", "Sparsity alone makes neither"):
        assert part in printed
        assert part in (run / "report.txt").read_text()
    _, report = read_report(run)
    assert headline(report) in " ".join(printed.split())
    assert report.weights.num_zeros == 457_792 // 2
    assert titles(run) == ["dense baseline", "fitted", "packed file"]
    assert report.file("model.packed").num_bytes == (run / "model.packed").stat().st_size
    assert [size.name for size in report.sizes] == ["dense", "zeros left out", "entropy-coded"]
    assert report.models[0].num_samples == 64
    assert report.seed == 0
    assert (run / report.checkpoint).is_file()
    assert report.schedules["sparsity"][-1] == (2, 0.5)
    compressed, dense = (torch.load(next(d.glob("checkpoints/*")), weights_only=True) for d in (run, run / "baseline"))
    assert sum(int((w == 0).sum()) for w in compressed["state_dict"].values() if w.ndim > 1) == 457_792 // 2
    assert sum(int((w == 0).sum()) for w in dense["state_dict"].values() if w.ndim > 1) == 0
    runs = [finished_records(file) for file in run.glob("wandb/offline-run-*/*.wandb")]
    groups = [record.run.run_group for records in runs for record in records if record.HasField("run")]
    assert len(runs) == 2
    assert set(groups) == {f"small {run.name}"}
    assert yaml.safe_load((run / "config.yaml").read_text())["pruning"]["sparsity"] == 0.5
    assert yaml.safe_load((run / "baseline/config.yaml").read_text())["pruning"] is None
    assert not Path("wandb").exists()
    assert [path.name for path in Path().iterdir() if path.name != "small.yaml"] == ["runs"]


def test_the_compressed_run_is_what_fit_makes(recipe):
    main(["run", "small.yaml", "--baseline=fit"])
    main(["fit", "--config=small.yaml"])
    ours, plain = (torch.load(next(the_run(n).glob("checkpoints/*")), weights_only=True) for n in ("small", "fit"))
    assert all(map(torch.equal, ours["state_dict"].values(), plain["state_dict"].values()))


def test_the_best_is_tested(recipe, caplog):
    worst = "--trainer.callbacks=[{class_path: ModelCheckpoint, init_args: {monitor: val/loss, mode: max}}]"
    slow = "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.02}}"
    main(["run", "small.yaml", worst, slow, "--trainer.max_epochs=4", "--trainer.limit_train_batches=8"])
    (kept,) = the_run().glob("checkpoints/*.ckpt")
    assert kept.name != "epoch=3-step=32.ckpt"  # else the test shows nothing
    assert f"Loaded model weights from the checkpoint at {kept.absolute()}" in caplog.text


def test_a_rounded_file_is_loaded_and_tested(recipe, capsys):
    main(["run", "small.yaml", "--half=[biases,norms]"])
    fitted, packed = read_report(the_run())[1].models
    weights = lc.load_packed(the_run() / "model.packed")
    assert all(torch.equal(w, w.half().float()) for name, w in weights.items() if name.endswith(("bias", "_mean")))
    assert packed.metrics["test/loss"] != fitted.metrics["test/loss"]
    assert packed.metrics["test/loss"] == pytest.approx(fitted.metrics["test/loss"], rel=1e-2)
    main(["verify", str(the_run()), "--test"])
    main(["export", str(the_run()), "--formats=packed", "--out=exported"])
    assert Path("exported/model.packed").read_bytes() == (the_run() / "model.packed").read_bytes()


def test_the_file_of_a_size_budget_is_rounded_as_it_says(recipe, capsys):
    main(["run", "small.yaml", "--size_budget={size: 120kB, half: [norms, codebooks]}", "--pruning=null"])
    assert 118_800 <= (the_run() / "model.packed").stat().st_size <= 120_000


def test_channels_that_sparse_layers_do_not_read_are_removed(recipe, capsys):
    main(["run", "small.yaml", "--pruning.sparsity=0.998", "--shrink=true", "--half=[biases]"])
    assert titles(the_run()) == ["fitted, channels masked", "channels removed", "packed file"]
    masked, removed, _ = read_report(the_run())[1].models
    assert removed.num_parameters < 0.9 * masked.num_parameters
    assert removed.metrics["test/loss"] == pytest.approx(masked.metrics["test/loss"], rel=1e-5)
    main(["verify", str(the_run()), "--test"])


def test_baseline_can_be_the_start(recipe):
    main(["run", "small.yaml", "--baseline=test", "--trainer.limit_train_batches=0"])
    _, report = read_report(the_run())
    assert report.baseline.metrics == report.result.metrics
    assert not (the_run() / "baseline/checkpoints").exists()


def test_without_a_baseline_nothing_is_compared(recipe):
    main(["run", "small.yaml"])
    assert titles(the_run()) == ["fitted", "packed file"]
    assert not (the_run() / "baseline").exists()


def test_a_failed_step_does_not_lose_the_report(recipe, capsys, monkeypatch):
    def broken(self):
        raise OSError("no space left")

    monkeypatch.setattr(StageCLI, "pack", broken)
    with pytest.raises(SystemExit) as exit_:
        main(["run", "small.yaml"])
    assert exit_.value.code == 1
    _, report = read_report(the_run())
    assert report.failures == ("The packed file failed: no space left.",)
    assert report.models[0].metrics
    assert "The packed file failed: no space left." in capsys.readouterr().out


INTERRUPTED = """
from lightning_compress.models.classification import ClassificationModule

class Interrupted(ClassificationModule):
    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
"""


def test_ctrl_c_prints_the_command_that_goes_on(recipe, error_message):
    Path("interrupted.py").write_text(INTERRUPTED)
    flags = ("--model.class_path=interrupted.Interrupted", "--trainer.max_epochs=2")
    message = error_message("run", "small.yaml", *flags, code=130)
    (checkpoint,) = the_run().glob("checkpoints/*.ckpt")
    assert message == (
        f"Interrupted. Go on with: lightning-compress run small.yaml {' '.join(flags)} "
        f"--ckpt_path={checkpoint.absolute()}"
    )
    main(["run", "small.yaml", "--trainer.max_epochs=2", f"--ckpt_path={checkpoint}"])


def test_a_baseline_that_exits_is_a_failed_step():
    attempts = Attempts()
    assert attempts.run("The baseline", lambda: sys.exit(2), default=None) is None
    assert attempts.failures == ["The baseline failed: exit code 2."]
    with pytest.raises(KeyboardInterrupt):
        attempts.run("The baseline", interrupt, default=None)


def interrupt():
    raise KeyboardInterrupt


def test_a_written_configuration_can_be_run(recipe):
    main(["fit", "--config=small.yaml"])
    main(["run", str(the_run("fit") / "config.yaml")])
    assert (the_run("config") / "report.txt").exists()


# Lightning runs the same script in the second process.
TWO_COMMANDS = """
from lightning_compress.cli import main
from lightning_compress.cli.attempts import Attempts
from lightning_compress.cli.stage_cli import StageCLI
from lightning_compress.reporting.run_report import read_report
from lightning_compress.reporting.run_summary import headline
main(["run", "small.yaml", "--baseline=fit"])
main(["fit", "--config=small.yaml"])
"""


def test_two_processes_share_one_directory(recipe):
    recipe.write_text(recipe.read_text().replace("accelerator: cpu", "accelerator: cpu\n  devices: 2\n  strategy: ddp"))
    Path("both.py").write_text(TWO_COMMANDS)
    command_line = [sys.executable, "-W", "ignore", "both.py"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr, "there was one process"
    for run in (the_run("fit"), the_run("small"), the_run("small") / "baseline"):
        assert len(list(run.glob("checkpoints/*.ckpt"))) == 1
        assert len(list(run.glob("config*.yaml"))) == 1
    assert done.stdout.count("Next: lightning-compress compare") == 1


def test_a_recipe_of_distillation_trains_its_teacher_first(workdir, capsys):
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
    teacher = (ROOT / "recipes/digits/teacher.yaml").read_text().replace("max_epochs: 15", "max_epochs: 1")
    (workdir / "teacher.yaml").write_text(teacher)
    main(["run", "digits/distill", "--teacher=teacher.yaml", *short])
    (run,) = (workdir / "runs/digits-distill").iterdir()
    assert titles(run) == ["teacher", "no-KD baseline", "distilled"]
    main(["verify", str(run), "--test"])
    assert "numbers computed again" in capsys.readouterr().out
    trained = run / "teacher/teacher.ckpt"
    saved = torch.load(trained, weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in saved)
    # With a trained teacher and no baseline, only the student is trained.
    main(["run", "digits/distill", f"--model.teacher={trained}", "--baseline=skip", *short])
    (again,) = (path for path in (workdir / "runs/digits-distill").iterdir() if path != run)
    assert titles(again) == ["distilled"]


def test_a_teacher_requires_a_distillation_module(workdir, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "digits/prune", "--teacher=digits/teacher"])
    assert stopped.value.code == 2
    assert "teacher=digits/teacher is only supported for a DistillationModule" in capsys.readouterr().err
