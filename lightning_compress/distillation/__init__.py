"""Knowledge distillation: a LightningModule that trains a student on the outputs of its teachers.

- ``module.py``: :class:`DistillationModule`, with ``dry_run.py``, ``wrapped_module.py`` and ``students.py``.
- ``logits.py``, ``features.py``: the losses; ``loss.py`` has their base classes, ``ramp.py`` scheduled weights,
  ``adapters.py`` the learned maps between feature shapes, ``objective.py`` the evaluation of all losses of a step.
- ``teacher.py``: specifications of teachers; ``teacher_loading.py`` builds them, ``teacher_ensemble.py`` holds them.
- ``frozen_network.py``, ``mean_teacher.py``, ``peer.py``: pretrained, averaged and jointly trained teachers.
- ``student_capture.py``, ``feature_hooks.py``: inputs, logits and features of a step, read by forward hooks.
- ``keyed.py``, ``logit_cache.py``, ``cached_rows.py``: teacher logits on disk.
"""
