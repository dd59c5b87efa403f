"""Invalid configurations: one line with the key and the fix, exit code 2, no traceback, no files left behind."""

from pathlib import Path

import pytest

from lightning_compress.cli import main

ON_THE_COMMAND_LINE = [
    (["--pruning.sparsiti=0.5"], ["Unknown key pruning.sparsiti of Pruning", "did you mean 'sparsity'"]),
    (["--pruning.schedule.ende=0.5"], ["Unknown key pruning.schedule.ende", "did you mean 'end'"]),
    (["--pruning.sparsity=lots"], ["pruning.sparsity=lots must be a number"]),
    (["--pruning.scope=globl"], ["pruning.scope=globl must be one of 'global', 'layer'"]),
    (
        ["--pruning.pattern=NMM"],
        ["pruning.pattern=NMM", "did you mean 'NM'", "Block, Channels, Depth, NM, Unstructured"],
    ),
    (["--pruning.pattern=NM"], ["pruning.pattern", "NM requires n, m", "--pruning.pattern.n="]),
    (
        ["--pruning.score=lightning_compress.NM"],
        ["pruning.score=lightning_compress.NM is not a subclass of Score", "Magnitude"],
    ),
    (["--trainer.max_epochz=3"], ["Unknown key trainer.max_epochz of Trainer", "did you mean 'max_epochs'"]),
    (["--trainer.max_epochs=three"], ["trainer.max_epochs=three must be an integer or null"]),
    (["--modell.num_classes=3"], ["Unknown key modell.num_classes", "did you mean 'model'"]),
    (["--model.num_class=3"], ["Unknown key model.num_class of ClassificationModule", "did you mean 'num_classes'"]),
    (["--model.num_classes=ten"], ["model.num_classes=ten must be an integer"]),
    (["--model.optimizer=torch.optim.Adamm"], ["torch.optim.Adamm does not exist", "did you mean 'Adam'"]),
    (["--data=Digits"], ["data=Digits is not a known class", "DigitsDataModule"]),
    (["--config=nothere.yaml"], ["nothere.yaml does not exist"]),
    (["--quantization.weights.bitz=4"], ["Unknown key quantization.weights.bitz of Int", "did you mean 'bits'"]),
    (["--quantization.weights.observer=Minmax"], ["quantization.weights.observer=Minmax", "Histogram", "MinMax"]),
    (["stray"], ["Unexpected argument 'stray'"]),
    (["--pruning.schedule=0.5"], ["pruning.schedule=0.5 must be a mapping", "arguments of Schedule"]),
    (["--pruning={sparsity: 0.5"], ["pruning={sparsity: 0.5 cannot be parsed as YAML", "expected ',' or '}'"]),
    (["--pruning.sparsity"], ["--pruning.sparsity requires a value"]),
    (["--pruning.sparsity={a: x}"], ["pruning.sparsity.a=x must be a number"]),
    (
        ["--pruning.distribution=ERK", "--pruning.distribution.x=1"],
        ["pruning.distribution.x of ERK, which has no keys"],
    ),
    (
        ["--quantization.weights={a: {bits: 4}, b: {bitz: 4}}"],
        ["Unknown key quantization.weights.b.bitz of Int", "did you mean 'bits'"],
    ),
    (
        ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentumm=1"],
        ["Unknown key model.optimizer.momentumm of SGD", "did you mean 'momentum'"],
    ),
    (["--clustering={}"], ["clustering: WeightClustering requires num_clusters: set --clustering.num_clusters=..."]),
    (["--lr_scheduler=StepLR"], ["lr_scheduler: StepLR requires step_size"]),
    (["--model.num_classes=null"], ["model: ClassificationModule requires num_classes"]),
    (["--data=torch.nn.Linear"], ["data=torch.nn.Linear is not a subclass of LightningDataModule"]),
    (["--config=."], ["config=. is not a file"]),
    (["--baseline=dense"], ["baseline=dense must be one of 'fit', 'test', 'skip'"]),
]

IN_A_FILE = [
    ("prunning: {sparsity: 0.5}", ["prunning", "did you mean 'pruning'"]),
    ("pruning: {sparsty: 0.5}", ["Unknown key pruning.sparsty of Pruning", "did you mean 'sparsity'"]),
    (
        "pruning: {sparsity: 0.5, pattern: Tailored}",
        ["pruning.pattern=Tailored", "Block, Channels, Depth, NM, Unstructured"],
    ),
    (
        "pruning: {sparsity: 0.5, pattern: {class_path: lightning_compress.NMN}}",
        ["lightning_compress.NMN does not exist", "did you mean 'NM'"],
    ),
    (
        "pruning: {sparsity: 0.5, pattern: {class_path: lightning_compress.NM, init_args: {n: 2, k: 4}}}",
        ["Unknown key pruning.pattern.k of NM: valid keys are n, m"],
    ),
    ("pruning: 0.9", ["pruning=0.9 must be a mapping", "the arguments of Pruning"]),
    ("pruning: {sparsity: [0.5", ["YAML cannot be parsed", "line 1"]),
    ("trainer: {max_epochz: 3}", ["Unknown key trainer.max_epochz of Trainer", "did you mean 'max_epochs'"]),
    (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.ModelCheckpoin}]}",
        ["ModelCheckpoin does not exist", "did you mean 'ModelCheckpoint'"],
    ),
]

FROM_CONSTRUCTORS = [
    (["--pruning.sparsity=1.5"], ["sparsity=1.5", "[0, 1)"]),
    (["--pruning.schedule.end=2.5"], ["end=2.5", "'2.5ep'"]),
    (["--pruning.pattern=NM", "--pruning.pattern.n=1", "--pruning.pattern.m=4"], ["NM(1, 4)", "0.75"]),
    (["--model.model=conv44"], ["model='conv44'", "'conv4'"]),
    (["--model.checkpoint=nothere.pt"], ["checkpoint='nothere.pt' does not exist"]),
    (["--model.label_smoothing=2"], ["label_smoothing=2", "[0, 1)"]),
    (["--trainer.accelerator=gpuu"], ["gpuu"]),
    (["--quantization.weights.bits=9"], ["Int(bits=9) must be an integer from 2 to 8"]),
    (["--quantization.weights={a: {bits: 9}}"], ["Int(bits=9) must be an integer from 2 to 8"]),
    (["--quantization.activations.granularity=channel"], ["activations: Int(granularity='channel') is for weights"]),
    (["--quantization.schedule.fake_quantize=2.5"], ["fake_quantize=2.5", "'2.5ep'"]),
]

FROM_SETUP = [
    (["--pruning.targets.include=[classifer]"], ["'classifer' matches no layer", "model.classifier.0"]),
    (["--data=CIFAR10DataModule", "--data.root=nowhere"], ["data.root='nowhere'", "--data.download=true"]),
    (["--ckpt_path=nothere.ckpt"], ["nothere.ckpt"]),
]


def check(message: str, parts: list[str]) -> None:
    for part in parts:
        assert part in message, message
    assert not Path("runs", "fit").exists() or not any(Path("runs", "fit").iterdir())


@pytest.mark.parametrize(("arguments", "parts"), ON_THE_COMMAND_LINE, ids=lambda value: str(value)[:40])
def test_on_the_command_line(arguments, parts, error_message):
    check(error_message("fit", "--config=small.yaml", *arguments), parts)


@pytest.mark.parametrize(("text", "parts"), IN_A_FILE, ids=lambda value: str(value)[:40])
def test_in_a_file(text, parts, error_message):
    Path("wrong.yaml").write_text(text)
    check(error_message("fit", "--config=small.yaml", "--config=wrong.yaml"), parts)


@pytest.mark.parametrize(("arguments", "parts"), FROM_CONSTRUCTORS, ids=lambda value: str(value)[:40])
def test_from_constructors(arguments, parts, error_message):
    check(error_message("fit", "--config=small.yaml", *arguments), parts)


@pytest.mark.parametrize(("arguments", "parts"), FROM_SETUP, ids=lambda value: str(value)[:40])
def test_from_setup(arguments, parts, error_message):
    check(error_message("fit", "--config=small.yaml", *arguments), parts)


def test_run_gives_the_same_messages(error_message):
    assert "did you mean 'sparsity'" in error_message("run", "small.yaml", "--pruning.sparsiti=0.5")
    assert "'x' matches no layer" in error_message("run", "small.yaml", "--pruning.targets.include=[x]")


def test_checkpoint_of_another_model(error_message):
    main(["fit", "--config=small.yaml"])
    (checkpoint,) = Path("runs/fit").glob("*/checkpoints/*.ckpt")
    other = ["--model.model=resnet20_cifar", "--model.model_kwargs={in_chans: 1}", f"--ckpt_path={checkpoint}"]
    assert "of another model" in error_message("fit", "--config=small.yaml", *other)
    assert "does not match the model: it lacks 'model.conv1.weight'" in error_message(
        "test", "--config=small.yaml", *other
    )


BROKEN = """
from lightning_compress.models.classification import ClassificationModule

class Broken(ClassificationModule):
    def training_step(self, batch, batch_idx):
        raise ValueError("a bug")

class Unbuildable(ClassificationModule):
    def __init__(self, model: str, num_classes: int, model_kwargs: dict):
        super().__init__(model, num_classes, model_kwargs=model_kwargs)
        self.width = None + 1
"""


def test_a_bug_in_a_constructor_keeps_its_traceback(recipe):
    Path("broken.py").write_text(BROKEN)
    with pytest.raises(TypeError, match="unsupported operand"):
        main(["fit", "--config=small.yaml", "--model.class_path=broken.Unbuildable"])


def test_errors_in_training_keep_their_traceback(recipe):
    Path("broken.py").write_text(BROKEN)
    with pytest.raises(ValueError, match="a bug"):
        main(["fit", "--config=small.yaml", "--model.class_path=broken.Broken"])
