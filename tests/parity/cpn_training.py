"""Parity of the learning-rate schedule."""

from __future__ import annotations

import numpy as np
from loader import Case

from jaxcell.training.optimizer import warmup_multistep

TOLERANCES: dict[str, float] = {}


def lr_schedule(case: Case) -> dict[str, np.ndarray]:
    c = case.constructor
    columns = []
    for base in c["base_lrs"]:
        schedule = warmup_multistep(base=base, milestones=c["milestones"], gamma=c["gamma"])
        columns.append([schedule(int(step)) for step in case.inputs["steps"]])
    return {"lr": np.asarray(columns, np.float32).T}


ADAPTERS = {"cpn/lr_schedule": lr_schedule}
