"""The command ``convert``: SparseML recipes of all forms become configurations that the parser accepts."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import instantiate_class

import lightning_compress as lc
from lightning_compress.cli import main
from lightning_compress.cli.runs import RunCLI
from lightning_compress.cli.sparseml.arithmetic import evaluate
from lightning_compress.cli.sparseml.conversion import RecipeConversion, convert_recipe
from lightning_compress.cli.sparseml.parameter_globs import layer_globs

GRADUAL = """\
stable: 1.0
pruning_epochs: 6
total: eval(stable + pruning_epochs + 3)
rate: 0.02

training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(total)}
  - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: eval(rate)}

pruning_modifiers:
  - !GMPruningModifier
    params: [features.0.weight, 're:features.[5-7].weight']
    init_sparsity: 0.05
    final_sparsity: 0.8
    start_epoch: eval(stable)
    end_epoch: "{{ stable + pruning_epochs }}"
    update_frequency: 0.5
    inter_func: linear
  - !GMPruningModifier
    params: ['re:classifier.*']
    init_sparsity: 0.05
    final_sparsity: 0.6
    start_epoch: {{stable}}
    end_epoch: eval(stable + pruning_epochs)
    update_frequency: 0.5
    inter_func: linear
"""
MARKDOWN = """\
<!-- notes -->
---
end: &end 4
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0
    end_epoch: *end
quantization_modifiers:
  - !QuantizationModifier
    start_epoch: 2.0
    submodules: [features]
    disable_quantization_observer_epoch: 3.0
    freeze_bn_stats_epoch: 2.5
    weight_bits: 4
    tensorrt: True
    reduce_range: True
---

# A model card with a table

---
"""
SCHEME = """\
test_stage:
  quant_modifiers:
    QuantizationModifier:
      start: 0.0
      ignore: [classifier.4, 're:features.0$', LlamaRMSNorm]
      scheme:
        weights: {num_bits: 8, symmetric: true, strategy: tensor}
        input_activations: {num_bits: 8, symmetric: true}
      scheme_overrides:
        features.2:
          weights: {num_bits: 4}
          input_activations: null
    SmoothQuantModifier: {smoothing_strength: 0.5}
"""
GROUPS = """\
quant_stage:
  run_type: oneshot
  modifiers:
    QuantizationModifier:
      config_groups:
        group_0:
          weights: {num_bits: 4, type: int, symmetric: true, strategy: channel}
          input_activations: null
          targets: [Linear]
        group_1:
          weights: {num_bits: 8}
          targets: [Embedding]
"""
RIGL = """\
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}
  - !LearningRateModifier
    lr_class: MultiStepLR
    lr_kwargs: {milestones: [5, 8], gamma: 0.1}
    init_lr: 1e-1
    start_epoch: 0
  - !RigLPruningModifier
    params: __ALL_PRUNABLE__
    final_sparsity: 0.9
    start_epoch: 0
    end_epoch: 7.5
    update_frequency: 0.25
    init_update_fraction: 0.2
  - !SetWeightDecayModifier {start_epoch: 2, weight_decay: 0.0}
"""
STRUCTURED = """\
modifiers:
  - !StructuredPruningModifier
    params: ['re:features.*weight']
    init_sparsity: 0.5
    final_sparsity: 0.5
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
    mask_type: filter
"""
MOVEMENT = """\
modifiers:
  - !MovementPruningModifier
    params: __ALL__
    init_sparsity: __FROM_PARAM__
    final_sparsity: 0.75
    start_epoch: 0
    end_epoch: 2
    update_frequency: 0.01
    mask_type: block4
"""
N_OF_M = """\
stage:
  pruning_modifiers:
    MagnitudePruningModifier:
      init_sparsity: 0.0
      final_sparsity: 0.5
      start: 0.0
      end: 2.0
      update_scheduler: cubic
      mask_structure: "2:4"
      targets: ['re:classifier.[02].weight']
"""
TRANSFER = """\
modifiers:
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__, start_epoch: 0.0}
  - !LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.01, final_lr: 0.0001, start_epoch: 0, end_epoch: 3}
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
"""
RECIPES = {
    "gradual": GRADUAL, "markdown": MARKDOWN, "scheme": SCHEME, "groups": GROUPS, "rigl": RIGL,
    "structured": STRUCTURED, "movement": MOVEMENT, "n_of_m": N_OF_M, "transfer": TRANSFER,
}  # fmt: skip
DISTILLED = """\
modifiers:
  - !DistillationModifier {hardness: 0.75, temperature: 3.0, distill_output_keys: [logits]}
  - !PerLayerDistillationModifier
    gain: 2.0
    student_layer_names: [features.2]
    teacher_layer_names: [model.features.7]
"""


def built(text: str, base: str) -> RunCLI:
    """The objects of a recipe with the converted one on top of it."""
    Path("base.yaml").write_text(base)
    Path("converted.yaml").write_text(convert_recipe(text).to_yaml("sparseml.yaml"))
    return RunCLI(args=["--config=base.yaml", "--config=converted.yaml"], run=False)


@pytest.fixture
def base(recipe: Path) -> str:
    text = recipe.read_text().replace("pruning: {sparsity: 0.5, schedule: {end: 0.5}}", "")
    return text.replace(
        "{model: conv4", "{optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}, model: conv4"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_form_is_accepted_by_the_parser(name, base, workdir):
    cli = built(RECIPES[name], base)
    callbacks = [callback for callback in cli.trainer.callbacks if type(callback).__module__.startswith("lightning_c")]
    kinds = {type(callback) for callback in callbacks}
    assert kinds & {lc.Pruning, lc.QuantizationAwareTraining, lc.Fixed}, kinds
    for callback in callbacks:
        if hasattr(callback, "targets"):
            assert callback.targets.module == "model"
            assert callback.targets.select(cli.model)


def test_gradual_pruning(base, workdir):
    pruning = built(GRADUAL, base).config_init.pruning
    assert pruning.schedule == lc.Schedule(begin="1ep", end="7ep", every="0.5ep", curve="linear")
    assert pruning.scope == "layer"
    assert pruning.sparsity == {"model.features.0": 0.8, "model.features?[5-7]": 0.8, "model.classifier*": 0.6}
    cli = built(GRADUAL, base)
    assert cli.trainer.max_epochs == 10
    assert cli.model.optimizer([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.02
    assert convert_recipe(GRADUAL).remarks == (
        "Learning rate: add it to a recipe with a module of this package that names its optimizer.",
        "GMPruningModifier: init_sparsity=0.05 has no counterpart; the ramp begins at 0.",
    )


def test_quantization_of_the_old_form(base, workdir):
    quantization = built(MARKDOWN, base).config_init.quantization
    assert quantization.weights == lc.Int(4)
    assert quantization.activations == lc.Int(8, symmetric=True)
    assert quantization.schedule == lc.QATSchedule("2ep", "2ep", "3ep", "2.5ep")
    assert quantization.targets.include == ("model.features",)
    assert convert_recipe(MARKDOWN).remarks == (
        "QuantizationModifier: reduce_range has no counterpart and is left out.",
    )


def test_quantization_of_the_new_form(base, workdir):
    quantization = built(SCHEME, base).config_init.quantization
    default = lc.Int(8, granularity="tensor")
    assert quantization.weights == {"model.features.2": lc.Int(4), "*": default}
    assert quantization.activations == {"model.features.2": None, "*": lc.Int(8, symmetric=True)}
    assert quantization.targets.exclude == ("model.classifier.4", "model.features?0")
    assert quantization.schedule == lc.QATSchedule(0.0, 0.0, 1.0, 1.0)
    assert len(convert_recipe(SCHEME).remarks) == 2
    groups = built(GROUPS, base).config_init.quantization
    assert groups.weights == lc.Int(4)
    assert groups.activations is None


def test_dynamic_sparse_training_and_its_learning_rate(base, workdir):
    cli = built(RIGL, base)
    pruning = cli.config_init.pruning
    assert pruning.growth == lc.RigL(0.2)
    assert pruning.distribution == lc.ERK()
    assert pruning.schedule == lc.Schedule(begin=0.0, end="7.5ep", every="0.25ep", curve="one_shot")
    scheduler = cli.model.lr_scheduler(cli.model.optimizer(cli.model.parameters()))
    assert isinstance(scheduler, torch.optim.lr_scheduler.MultiStepLR)
    assert sorted(scheduler.milestones) == [5, 8]
    assert scheduler.base_lrs == [0.1]
    (remark,) = [remark for remark in convert_recipe(RIGL).remarks if "WeightDecay" in remark]
    assert "weight decay does not change within a run" in remark


def test_patterns_and_scores(base, workdir):
    assert built(STRUCTURED, base).config_init.pruning.pattern == lc.Channels()
    movement = built(MOVEMENT, base).config_init.pruning
    assert (movement.pattern, movement.score) == (lc.Block((1, 4)), lc.Movement())
    assert built(N_OF_M, base).config_init.pruning.pattern == lc.NM(2, 4)


def test_zeros_are_kept_in_transfer_learning(base, workdir):
    cli = built(TRANSFER, base)
    (fixed,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, lc.Fixed)]
    assert fixed.targets == lc.Targets(module="model")
    scheduler = cli.model.lr_scheduler(cli.model.optimizer(cli.model.parameters()))
    assert (scheduler.T_max, scheduler.eta_min) == (3, 0.0001)


def test_distillation(base, workdir):
    Path("teacher.yaml").write_text(base)
    student = base.replace("ClassificationModule", "DistillationModule").replace("model: conv4", "student: conv4")
    teacher = "{class_path: lightning_compress.ClassificationModule, init_args: {model: conv4, num_classes: 10, "
    teacher += "model_kwargs: {in_chans: 1, img_size: 8}}}"
    cli = built(DISTILLED, student.replace("student: conv4", f"teacher: {teacher}, student: conv4"))
    assert cli.config.model.init_args.task_weight == 0.25
    losses = cli.config.model.init_args.losses
    assert instantiate_class((), {**vars(losses["kd"]), "init_args": vars(losses["kd"].init_args)}) == lc.KD(
        temperature=3.0, weight=0.75
    )
    assert losses["features"].init_args.layers == (("features.2", "model.features.7"),)
    assert losses["features"].init_args.weight == 2.0


def test_a_second_schedule_is_named():
    text = GRADUAL.replace("start_epoch: {{stable}}", "start_epoch: 3")
    converted = convert_recipe(text)
    assert converted.config["pruning"]["sparsity"] == 0.8
    assert any("GMPruningModifier from epoch 3: a second schedule" in remark for remark in converted.remarks)


@pytest.mark.parametrize("name", ["ACDCPruningModifier", "GPTQModifier", "NeverHeardOfModifier"])
def test_what_has_no_counterpart_is_named(name):
    converted = convert_recipe(TRANSFER + f"  - !{name} {{a: 1}}\n")
    (remark,) = [remark for remark in converted.remarks if name in remark]
    assert remark.startswith(f"{name} has no counterpart: ")
    assert remark.endswith(".")
    assert f"# {remark}\n" in converted.to_yaml("x.yaml")


NAMES = [
    *(f"{name}.weight" for name, _ in lc.ClassificationModule("resnet20_cifar", 10).model.named_modules() if name),
    *(f"bert.encoder.layer.{i}.{part}.weight" for i in (0, 1, 11) for part in ("attention.self.key", "output.dense")),
    "fc.weight", "convolution.weight", "head.conv1.weight",
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        ".*weight", ".*conv.*", ".*conv*", r"layer1\.0\.conv1\.weight$", "layer[12].[0-2].conv1.weight",
        "bert.encoder.layer.*.attention.self.(key|value).weight", r"bert\.encoder\.layer\.\d+\.output.*",
        "^fc.weight", ".*fc.weight$", "(?:layer1|layer2).*conv2", "convo?.*", "conv", ".+conv1.*",
    ],
)  # fmt: skip
def test_a_glob_matches_the_layers_that_the_regular_expression_matches(pattern):
    globs = layer_globs(f"re:{pattern}", "")
    assert globs
    layers = {name for name in NAMES if re.match(pattern, name)}
    found = {name for name in NAMES if any(fnmatchcase(name.removesuffix(".weight"), glob) for glob in globs)}
    assert found == layers


@pytest.mark.parametrize("pattern", [r"(?!conv).*", r"\w+\.weight", "(a|b)+.weight", "a{2,3}", "[^c].*", "(", "a|b"])
def test_other_regular_expressions_are_named(pattern):
    text = STRUCTURED.replace("re:features.*weight", f"re:{pattern}")
    converted = convert_recipe(text)
    assert "pruning" not in converted.config
    assert converted.remarks == (
        f"StructuredPruningModifier: {f're:{pattern}'!r} has no glob; add its layers to targets.include by hand.",
    )


def test_the_command_writes_and_prints(workdir, capsys, recipe):
    Path("their.yaml").write_text(SCHEME)
    main(["convert", "their.yaml", "ours.yaml"])
    printed = capsys.readouterr()
    assert "lightning-compress run RECIPE --config=ours.yaml" in printed.out
    assert "SmoothQuantModifier has no counterpart" in printed.err
    main(["convert", "their.yaml", "--module=net"])
    written = yaml.safe_load(capsys.readouterr().out)
    assert written["quantization"]["targets"] == {"module": "net", "exclude": ["net.classifier.4", "net.features?0"]}
    assert Path("ours.yaml").read_text().startswith("# Converted from the SparseML recipe their.yaml.\n# ")


def test_a_converted_recipe_trains(base, workdir):
    Path("their.yaml").write_text(GRADUAL)
    Path("base.yaml").write_text(base)
    main(["convert", "their.yaml", "ours.yaml"])
    main(["run", "base.yaml", "--config=ours.yaml"])
    (run,) = Path("runs/base").iterdir()
    weights = lc.load_packed(run / "model.packed")
    for name, sparsity in (("features.0.weight", 0.8), ("features.5.weight", 0.8), ("classifier.4.weight", 0.6)):
        weight = weights[name]
        assert abs(int((weight == 0).sum()) - sparsity * weight.numel()) <= 1, name


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "empty": "",
    "words": "just words",
    "list": "- a\n",
    "no modifiers": "pruning: {sparsity: 0.5}\n",
    "broken": "modifiers: [!GMPruningModifier {a: ",
    "tab": "modifiers:\n\t- a",
    "alias": "modifiers: *a\n",
    "scalar tag": "modifiers: [!GMPruningModifier 3]\n",
    "list tag": "modifiers: [!GMPruningModifier [1, 2]]\n",
    "python": "modifiers: [!!python/object/apply:os.system ['true']]\n",
    "undefined": GRADUAL.replace("stable: 1.0", ""),
    "cycle": "a: eval(b)\nb: eval(a)\n" + TRANSFER,
    "code": GRADUAL.replace("stable + pruning_epochs + 3", "__import__('os').getpid()"),
    "attribute": GRADUAL.replace("stable + pruning_epochs + 3", "stable.real"),
    "text": GRADUAL.replace("stable: 1.0", "stable: soon"),
    "zero division": GRADUAL.replace("eval(total)", "eval(1 / 0)"),
    "empty eval": GRADUAL.replace("eval(total)", "eval()"),
    "sparsity": GRADUAL.replace("0.8", "80"),
    "no sparsity": GRADUAL.replace("final_sparsity", "final"),
    "epoch": GRADUAL.replace("start_epoch: eval(stable)", "start_epoch: [1]"),
    "infinite": GRADUAL.replace("eval(total)", ".inf"),
    "not a number": GRADUAL.replace("end_epoch: eval(total)", "end_epoch: .nan"),
    "params": GRADUAL.replace("['re:classifier.*']", "{a: 1}"),
    "mask": STRUCTURED.replace("filter", "spiral"),
    "bits": MARKDOWN.replace("weight_bits: 4", "weight_bits: 16"),
    "scheme": SCHEME.replace("{num_bits: 4}", "four"),
    "hardness": DISTILLED.replace("0.75", "7"),
    "rate": TRANSFER.replace("init_lr: 0.01, ", ""),
    "laughs": LAUGHS + TRANSFER,
    "endless": "a: &a [*a]\n" + TRANSFER,
    "deep": "a: " + "[" * 3000 + "]" * 3000,
    "nothing": "modifiers: [!GPTQModifier {}]\n",
    "binary": "\x00\x01",
    "kwargs": RIGL.replace("{milestones: [5, 8], gamma: 0.1}", "3"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_recipe_that_cannot_be_read_is_one_sentence(name, error_message, workdir):
    Path("bad.yaml").write_text(BAD[name])
    message = error_message("convert", "bad.yaml", "out.yaml")
    assert message.startswith("bad.yaml cannot be converted: ")
    assert message.endswith(".")
    assert len(message) < 400
    assert not Path("out.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml cannot be read: No such file or directory."),
        (["."], ". cannot be read: Is a directory."),
        (["small.yaml", "small.yaml"], "small.yaml cannot be converted: it has no modifier"),
        (["their.yaml", "small.yaml"], "small.yaml already exists and was not overwritten"),
        (["their.yaml", "nowhere/ours.yaml"], "nowhere/ours.yaml cannot be written"),
        (["binary.yaml"], "binary.yaml is not a text file"),
        ([], "RECIPE"),
        (["their.yaml", "--modul=net"], "Unknown option --modul (did you mean '--module'?)"),
    ],
)
def test_wrong_usage(arguments, words, error_message):
    Path("their.yaml").write_text(GROUPS)
    Path("binary.yaml").write_bytes(bytes(range(128, 256)))
    assert words in error_message("convert", *arguments)


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "(lambda: 1)()", "x.y", "[1] * 9", "'a' * 3", "9 ** 9", "f(1)", "1 if 1 else 2"]
)
def test_only_arithmetic_is_computed(expression):
    with pytest.raises(ValueError, match=r"is not|cannot"):
        evaluate(expression, {"x": 1})


def test_arithmetic():
    assert evaluate("round(2.6) + max(a, 3) - 7 // 2 % 2 * -1", {"a": 5}) == 9
    assert evaluate("names", {"names": ["a"]}) == ["a"]
    assert isinstance(convert_recipe(TRANSFER), RecipeConversion)
