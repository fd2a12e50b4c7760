"""Parity of a training step's loss: matching, weighted terms, and the gradient of every parameter."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from loader import Case
from sparseseunet_functions import in_order_of_queries, numbered
from sparseseunet_models import load, nhwc, published, sparse_network

from jaxcell.losses.instances import instance_losses, resize_masks
from jaxcell.losses.overlaps import unguided_focal
from jaxcell.matching import dice_scores, match_on_host, pair_scores
from jaxcell.models.backend import compiler_options
from jaxcell.systems.sparse_seunet import sparse_objective

WEIGHTS = {"scores": 2.0, "masks": 5.0, "dice": 2.0, "objectness": 1.0}     # SparseInst's, as the case's description says
NAMES = {"loss_ce": "scores", "loss_mask": "masks", "loss_dice": "dice", "loss_objectness": "objectness"}


def loss_gradient(case: Case) -> dict[str, np.ndarray]:
    network, image, masks = sparse_network(case), nhwc(case.inputs["image"]), numbered(case, "masks")
    most = max(1, *map(len, masks))
    batch = {"masks": np.stack([np.pad(part, ((0, most - len(part)), (0, 0), (0, 0))) for part in masks]),
             "present": np.arange(most) < np.asarray([[len(part)] for part in masks]),
             "annotated": np.ones((len(masks), *masks[0].shape[1:]), np.float32)}
    variables = load(case, network, image, network.heads)
    objective = partial(sparse_objective, weights=WEIGHTS, matcher=match_on_host, instance_terms=instance_losses,
                        overlap_error=unguided_focal)

    def loss(params: dict) -> tuple[jax.Array, tuple[dict, dict]]:
        outputs = network.apply(variables | {"params": params}, image, False)
        terms = objective(outputs, batch)
        return sum(terms.values()), (terms, outputs)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options())
    (total, (terms, outputs)), gradient = jax.device_get(step(variables["params"]))
    probabilities, confidence = (jax.nn.sigmoid(jnp.asarray(outputs[name])) for name in ("masks", "scores"))
    dice = dice_scores(probabilities, resize_masks(jnp.asarray(batch["masks"]), probabilities.shape[2:]))
    queries = np.asarray(match_on_host(pair_scores(dice, confidence[..., None]), jnp.asarray(batch["present"])))

    by_name = published(case, {"params": gradient}, heads=network.heads)
    described = case.meta["outputs"]

    def norm(*names: str) -> float:
        return float(np.sqrt(sum(np.square(by_name[name], dtype=np.float64).sum() for name in names)))

    out = {"total": total, "param_norms": np.asarray([norm(name) for name in described["param_norms"]]),
           "group_norms": np.asarray([norm(*(name for name in by_name if name.startswith(f"{group}.")))
                                      for group in described["group_norms"]])}
    for number, (rows, cells) in enumerate(in_order_of_queries(queries)):
        out |= {f"src{number}": rows, f"tgt{number}": cells}
    kept = {f"grad/{name}": value[::8] if value.ndim == 4 else value for name, value in by_name.items()}     # (as the file says)
    return out | {name: terms[key] for name, key in NAMES.items()} | kept


ADAPTERS = {"sparseseunet/net_loss_gradient": loss_gradient}
TOLERANCES: dict[str, float] = {}
