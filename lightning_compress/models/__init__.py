"""Models for image classification; any other LightningModule or network can be compressed as well.

- ``classification.py``: :class:`ClassificationModule`, which trains a network; start here. ``mixup.py`` mixes its
  batches, ``stem.py`` adapts timm networks to small images, ``weights.py`` loads weights from files, and
  ``checkpoint_loading.py`` checkpoints.
- ``networks/``: network architectures of the compression literature that timm lacks (LeNet, Conv-4, CIFAR ResNets,
  SqueezeNet). Enter here to read or add an ``nn.Module``.
- ``catalogue/``: :func:`backbones`, a table of timm's compact networks with their parameters, MACs, bytes and latency.
  Enter here to choose a network.
"""
