"""Parity of the SE-U-Nets and of SparseInst's decoders: features, maps and masks, statistics, loss and gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from loader import Case

from jaxcell.models.backend import compiler_options
from jaxcell.models.decoders.instances import InstanceDecoder, InstanceHead, LastLevelBranch
from jaxcell.models.encoders.se_unet import SEUNetEncoder
from jaxcell.models.inputs import prepend_coordinates
from jaxcell.models.layers import Conv, NoNorm, SqueezeExcite
from jaxcell.models.resize import resize_bilinear
from jaxcell.pretrained.sparse_seunet import load_sparse_seunet, sparse_seunet_paths, swap_coordinates
from jaxcell.systems.sparse_seunet import ACTIVATIONS, BRANCHES, SparseSEUNet

HEADS = ("cytoplasm", "nuclei", "border", "background")


def sparse_network(case: Case) -> SparseSEUNet:
    settings = case.constructor
    overlap = settings.get("overlap", False)
    head = partial(InstanceHead, queries=settings["num_masks"], weights=ACTIVATIONS[settings.get("act", "softmax")],
                   depth=1 if settings.get("fc", True) else 0)
    instances = partial(InstanceDecoder, head=head, branch=BRANCHES["multi" if settings.get("multi_level", True) else "single"],
                        mask_features=settings["kernel_dim"])
    return SparseSEUNet(heads=("overlap",) if overlap else (), condition="overlap" if overlap else None, instances=instances,
                        encoder=partial(SEUNetEncoder, levels=settings["n_levels"]),
                        branch_norm=None if settings.get("norm", True) else NoNorm)


def semantic_network(case: Case) -> SparseSEUNet:
    return SparseSEUNet(heads=HEADS[:case.constructor["heads"]], instances=None,
                        encoder=partial(SEUNetEncoder, levels=case.constructor["n_levels"]))


def nhwc(image: np.ndarray) -> np.ndarray:
    return image.transpose(0, 2, 3, 1)


def nchw(features: Any) -> np.ndarray:
    return np.asarray(features).transpose(0, 3, 1, 2)


def load(case: Case, network: nn.Module, image: np.ndarray, heads: tuple[str, ...] = ()) -> dict[str, Any]:
    """The file's parameters, through the importer of published checkpoints."""
    return load_sparse_seunet(case.parameters(), jax.eval_shape(network.init, jax.random.key(0), image), heads=heads)


def run(case: Case, network: SparseSEUNet) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
    """(outputs, what was sown, running statistics afterwards)."""
    train, image = case.meta["mode"].startswith("train"), nhwc(case.inputs["image"])
    apply = jax.jit(partial(network.apply, train=train, mutable=["intermediates", "batch_stats"]),
                    compiler_options=compiler_options())
    outputs, state = jax.device_get(apply(load(case, network, image, network.heads), image))
    return outputs, state["intermediates"], state["batch_stats"]


def features_of(seen: Mapping[str, Any], levels: int) -> dict[str, np.ndarray]:
    """Features of the encoder by the reference's names."""
    return {"enc0": nchw(seen["encoder.0"][0]), "enc_last": nchw(seen[f"encoder.{levels - 1}"][0]),
            "pyramid_last": nchw(seen[f"skip.{levels - 1}"][0]), "middle": nchw(seen[f"encoder.{levels}"][0])}


def sparse(case: Case) -> dict[str, np.ndarray]:
    outputs, seen, statistics = run(case, sparse_network(case))
    found = seen["instances"]
    results = features_of(seen, case.constructor["n_levels"])
    results |= {
        "decoder_level0": nchw(seen["instance_decoder.0"][0]), "inst_features": nchw(found["instance_features"][0]),
        "mask_features": nchw(found["mask_features"][0]), "pred_iam": nchw(found["head"]["activation_maps"][0]),
        "pred_kernel": seen["kernels"][0], "pred_logits": outputs["scores"][..., None],
        "pred_scores": outputs["objectness"][..., None], "pred_masks": outputs["masks"],
    }
    if "step.0" in found.get("instance_branch", {}):
        results["inst_level0"] = nchw(found["instance_branch"]["step.0"][0])
    if "overlap" in outputs:
        results["pred_overlaps"] = nchw(outputs["overlap"])
    return results | published(case, {"batch_stats": statistics}, prefix="state_after/")


def semantic(case: Case) -> dict[str, np.ndarray]:
    network = semantic_network(case)
    outputs, seen, _ = run(case, network)
    levels = case.constructor["n_levels"]
    last = seen[f"{network.heads[-1]}_decoder.{levels - 1}"][0]
    return features_of(seen, levels) | {"decoder_last": nchw(last),
                                        "pred_semantic": nchw(np.concatenate([outputs[h] for h in network.heads], -1))}


def published(case: Case, variables: Mapping[str, Any], *, heads: tuple[str, ...] = (), prefix: str = ""
              ) -> dict[str, np.ndarray]:
    """Variables of ours by the reference's names and in its layout."""
    flat = traverse_util.flatten_dict(dict(variables))
    shapes = dict(case.meta["parameters"])
    return {f"{prefix}{name}": there(name, np.asarray(flat[path])).reshape(shapes[name])
            for name, path in sparse_seunet_paths(shapes, heads=heads).items() if path in flat}


def there(name: str, array: np.ndarray) -> np.ndarray:
    return swap_coordinates(name, array).transpose(3, 2, 0, 1) if array.ndim == 4 else array


# ---------------------------------------------------------------------------------------------------------- SparseInst
class SparseInstDecoder(nn.Module):
    """SparseInst's decoders on given features: places in front, no norms, results enlarged."""

    instances: Callable[..., nn.Module]
    scale: int

    @nn.compact
    def __call__(self, features: jax.Array) -> dict[str, jax.Array]:
        found = self.instances(conv=Conv, norm=NoNorm, act=nn.relu, name="instances")([prepend_coordinates(features)])
        shape = [self.scale * size for size in features.shape[1:3]]
        masks = resize_bilinear(found["masks"].transpose(0, 2, 3, 1), shape)
        return found | {"masks": masks.transpose(0, 3, 1, 2)}


GROUPED = {"BaseIAMDecoder": False, "GroupIAMDecoder": True, "GroupIAMSoftDecoder": True}
WEIGHTS = {"BaseIAMDecoder": "sigmoid", "GroupIAMDecoder": "sigmoid", "GroupIAMSoftDecoder": "softmax"}


def activation_maps(case: Case) -> dict[str, np.ndarray]:
    settings = case.constructor
    name, scale = settings["decoder"], int(settings["scale"])
    grouped = GROUPED[name]
    head = partial(InstanceHead, queries=settings["N"], weights=ACTIVATIONS[WEIGHTS[name]], classes=settings["C"],
                   groups=settings["groups"] if grouped else 1, depth=1 if grouped else 0)
    instances = partial(InstanceDecoder, head=head, branch=partial(LastLevelBranch, depth=settings["convs"]),
                        instance_features=settings["dim"], mask_features=settings["dim"], kernel_features=settings["kd"])
    network, features = SparseInstDecoder(instances, scale), nhwc(case.inputs["features"])
    variables = load(case, network, features)
    found, state = jax.device_get(jax.jit(partial(network.apply, mutable="intermediates"))(variables, features))
    seen = state["intermediates"]["instances"]
    maps = seen["head"]["activation_maps"][0]
    places = nchw(prepend_coordinates(features))[:, 1::-1]
    return {
        "pred_logits": found["scores"], "pred_masks": found["masks"], "pred_scores": found["objectness"][..., None],
        "pred_kernel": found["kernels"], "inst_features_map": nchw(seen["instance_features"][0]),
        "mask_features": nchw(seen["mask_features"][0]), "coordinates": places,
        "pred_iam": nchw(resize_bilinear(maps, [scale * size for size in maps.shape[1:3]])),
    }


def se_block(case: Case) -> dict[str, np.ndarray]:
    network = SqueezeExcite(conv=Conv, reduction=case.constructor["reduction_factor"])
    weights = {"squeeze": "excite.0", "excite": "excite.2"}
    state = case.parameters()
    params = {here: {"kernel": state[f"{name}.weight"].T[None, None], "bias": state[f"{name}.bias"]}
              for here, name in weights.items()}
    y, sown = network.apply({"params": params}, nhwc(case.inputs["x"]), mutable="intermediates")
    return {"y": nchw(y), "scale": sown["intermediates"]["scale"][0]}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    **{f"sparseseunet/net_{name}": sparse for name in (
        "multilevel_full", "multilevel_small", "multilevel_sigmoid", "multilevel_nonorm", "multilevel_train", "singlelevel",
        "overlap")},
    **{f"sparseseunet/net_iam_{name}": activation_maps for name in ("base", "group", "group_soft")},
    "sparseseunet/net_semantic": semantic,
    "sparseseunet/fn_se_block": se_block,
}

# Outputs of the train case are compared at 1e-3 (the folder's README).
TOLERANCES: dict[str, float] = {"sparseseunet/net_multilevel_train": 1e-3}
