"""Models for classification, segmentation and detection; any other LightningModule can be compressed as well.

- ``classification.py``: :class:`ClassificationModule`, which trains a network; start here. ``mixup.py`` mixes its
  batches, ``stem.py`` adapts timm networks to small images, ``weights.py`` loads weights from files, and
  ``checkpoint_loading.py`` checkpoints.
- ``positions.py``: :class:`SegmentationModule` and :class:`TokenClassificationModule`. ``detection.py``:
  :class:`DetectionModule`, with ``cell_targets.py`` for the boxes and ``average_precision.py`` for the metric.
- ``networks/``: network architectures that timm lacks (LeNet, Conv-4, CIFAR ResNets, SqueezeNet, a detector). Enter
  here to read or add an ``nn.Module``.
- ``catalogue/``: :func:`backbones`, a table of timm's compact networks with their parameters, MACs, bytes and latency.
  Enter here to choose a network.
"""
