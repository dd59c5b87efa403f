"""Process that measures one network: ``python -m tests.zoo.worker TECHNIQUE NAME`` prints a JSON line per cell."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings

import torch

from tests.zoo.cells import measure
from tests.zoo.networks import NETWORKS
from tests.zoo.subject import Subject
from tests.zoo.techniques import TECHNIQUES


def main() -> None:
    technique, name = sys.argv[1:]
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    subject = Subject(NETWORKS[name])
    for column in TECHNIQUES[technique]:
        print(json.dumps(dataclasses.asdict(measure(column, subject))), flush=True)


if __name__ == "__main__":
    main()
