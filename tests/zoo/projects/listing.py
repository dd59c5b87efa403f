"""All projects; they need the extra ``zoo``."""

from __future__ import annotations

from tests.zoo.projects import (
    byol,
    detection,
    dino,
    dqn,
    gan,
    glue,
    segmentation,
    template,
    time_series,
    tokens,
)  # fmt: skip
from tests.zoo.projects.project import Project

PROJECTS: dict[str, Project] = {
    room.__name__.rpartition(".")[2]: room.PROJECT
    for room in (byol, detection, dino, dqn, gan, glue, segmentation, template, time_series, tokens)
}
