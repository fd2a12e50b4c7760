"""Parity adapters of the data part."""

from __future__ import annotations

import numpy as np
from loader import Case

from jaxcell.data.normalize import challenge_cstm, challenge_mix, challenge_prov

# "These are 8-bit outputs: allow a difference of 1." (notes of the file; for integers the tolerance counts grey levels)
TOLERANCES = {"cpn/intensity_normalisation": 1.0}


def intensity_normalisation(case: Case) -> dict[str, np.ndarray]:
    settings = case.constructor
    cstm = {key: settings[key] for key in ("gamma_spread", "lower_gamma_bound", "percentile")} | {"fractions": False}
    prov = {key: settings[key] for key in ("lower", "upper")}
    outputs = {}
    for name, image in case.inputs.items():
        planes = image[..., None] if image.ndim == 2 else image
        curves = {"cstm": challenge_cstm(planes, **cstm), "prov": challenge_prov(planes, **prov),
                  "cstm-mix": challenge_mix(planes, **cstm, **prov)}
        for method, curve in curves.items():
            outputs[f"{name}_{method}"] = np.rint(curve(planes) * 255).astype(np.uint8).reshape(image.shape)
    return outputs


ADAPTERS = {"cpn/intensity_normalisation": intensity_normalisation}
