"""Parity of what makes synthetic training data: pix2pix, its losses, copy-paste, and the Fréchet distance."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from loader import Case

from jaxcell.data.augment.mixing import Canvas, enter_cell, paste
from jaxcell.data.compose import Cutout, compose
from jaxcell.losses.adversarial import ADVERSARIAL
from jaxcell.losses.regression import absolute_error
from jaxcell.metrics.frechet import feature_statistics, frechet_distance
from jaxcell.models.backend import compiler_options
from jaxcell.pretrained.pix2pix import discriminator_paths, generator_paths, load_discriminator, load_generator
from jaxcell.systems.pix2pix import PatchDiscriminator, TranslationNetwork
from jaxcell.training.adversarial import discriminator_terms, generator_terms


def forward(case: Case, network: Any, image: np.ndarray, load: Callable[..., Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(outputs, features, statistics after it) of a pass in the case's mode."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    apply = jax.jit(partial(network.apply, train=case.meta["mode"].startswith("train"), mutable=["intermediates", "batch_stats"]),
                    compiler_options=compiler_options())
    outputs, state = jax.device_get(apply(load(case.parameters(), shapes), image))
    return outputs, {name: value[0] for name, value in state["intermediates"].items()}, state["batch_stats"]


def generator(case: Case) -> dict[str, Any]:
    settings = case.constructor
    network = TranslationNetwork(settings["input_nc"], settings["output_nc"], settings["num_downs"], settings["ngf"],
                                 settings["dropout"])
    outputs, features, statistics = forward(case, network, (case.inputs["phase"].transpose(0, 2, 3, 1) + 1) / 2, load_generator)
    results = {f"block{name.removeprefix('level')}_out": nchw(value) for name, value in features.items()}
    return {"out": nchw(outputs["planes"])} | results | named_statistics(case, statistics, generator_paths(case.parameters()))


def discriminator(case: Case) -> dict[str, Any]:
    settings = case.constructor
    network = PatchDiscriminator(settings["ndf"], settings["n_layers"])
    output, features, statistics = forward(case, network, case.inputs["pair"].transpose(0, 2, 3, 1), load_discriminator)
    results = {f"layer{3 * int(name.removeprefix('layer')) + 1}_out": nchw(value) for name, value in features.items()}
    return {"out": nchw(output)} | results | named_statistics(case, statistics, discriminator_paths(case.parameters()))


def named_statistics(case: Case, statistics: dict[str, Any], paths: dict[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Running statistics by the reference's names."""
    return {f"state_after/{name}": statistics[path[1]][path[2]] for name, path in paths.items() if path[:1] == ("batch_stats",)}


def nchw(value: np.ndarray) -> np.ndarray:
    return np.asarray(value).transpose(0, 3, 1, 2)


def gan_losses(case: Case) -> dict[str, Any]:
    real, fake, weight = case.inputs["real_logits"], case.inputs["fake_logits"], case.constructor["lambda_l1"]
    l1 = jnp.mean(absolute_error(case.inputs["fake_image"], case.inputs["real_image"]))
    results = {"l1": l1}
    for name in ("vanilla", "lsgan"):
        terms = discriminator_terms(real, fake, adversarial=ADVERSARIAL[name])
        misled = generator_terms(fake, adversarial=ADVERSARIAL[name])["adversarial"]
        results |= {f"{name}_d_real": 2 * terms["real"], f"{name}_d_fake": 2 * terms["fake"], f"{name}_d": sum(terms.values()),
                    f"{name}_g_gan": misled, f"{name}_g": misled + weight * l1}
    return results


def copy_paste(case: Case) -> dict[str, Any]:
    masks = case.inputs["candidate_masks"].astype(bool)
    crops = [image[..., None].astype(np.float32) for image in case.inputs["candidate_images"]]
    results: dict[str, Any] = {}
    for name, sigma in (("image", 0.0), ("image_soft", case.constructor["sigma"])):
        canvas = Canvas(np.zeros((*masks.shape[1:], 1), np.float32), [np.zeros(masks.shape[1:], np.int32)], None)
        cutouts = [(Cutout(image, mask), (0, 0)) for image, mask in zip(crops, masks, strict=True)]
        pieces = compose(canvas, cutouts, max_overlap=case.constructor["max_overlap"], sigma=sigma)
        results[name] = canvas.image[..., 0]
    results |= {"ratio": [piece.overlap for piece in pieces], "accepted": [piece.accepted for piece in pieces]}
    return results | released_paste(case, masks)


def released_paste(case: Case, masks: np.ndarray) -> dict[str, Any]:
    """The first masks are pasted, as many as the file's notes say; the next ones are the picture's own."""
    count = int(re.search(r"union of (\d+) pasted masks", case.meta["notes"])[1])
    image = case.inputs["released_base"][..., None].copy()
    pasted, own = masks[:count], masks[count:len(case.outputs["released_masks"])]
    everywhere = slice(0, image.shape[0]), slice(0, image.shape[1])
    paste(image, case.inputs["released_paste"][..., None], pasted.any(axis=0), everywhere, everywhere,
          overlaps="occlude", sigma=case.constructor["released_sigma"])
    layers = [mask * np.int32(1 + i) for i, mask in enumerate(own)]
    canvas = Canvas(image, layers, None)
    for number, mask in enumerate(pasted, start=1 + len(own)):
        enter_cell(canvas, mask, None, everywhere, number, covers=True)
    found = np.stack([np.any([layer == 1 + i for layer in canvas.layers], axis=0) for i in range(len(own) + len(pasted))])
    return {"released_blend": image[..., 0], "released_masks": found.astype(np.uint8)}


def frechet(case: Case) -> dict[str, Any]:
    first, second = (feature_statistics(np.array_split(case.inputs[f"features_{name}"], 3)) for name in "ab")
    return {"mean_a": first.mean, "mean_b": second.mean, "cov_a": first.covariance, "cov_b": second.covariance,
            "fid": frechet_distance(first, second), "mean_term": np.sum((first.mean - second.mean) ** 2)}


ADAPTERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "sparseseunet/net_pix2pix_g": generator, "sparseseunet/net_pix2pix_g_train": generator,
    "sparseseunet/net_pix2pix_d": discriminator, "sparseseunet/net_pix2pix_d_train": discriminator,
    "sparseseunet/fn_copy_paste": copy_paste, "sparseseunet/fn_gan_losses": gan_losses, "sparseseunet/fn_fid": frechet,
}

# "Compare at 1e-4 relative to the largest value of an array (train mode: 1e-3)."
TOLERANCES: dict[str, float] = {"sparseseunet/net_pix2pix_g_train": 1e-3, "sparseseunet/net_pix2pix_d_train": 1e-3}
