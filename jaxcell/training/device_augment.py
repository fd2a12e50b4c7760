"""Intensity changes inside the compiled train step, for accelerators that compute them in passing.

Geometry stays with the data workers, since targets are made of the moved labels; what leaves the labels alone can happen here
instead, after the batch has arrived. Choose a host policy without the same steps (config.data.augment = "flips", say).
Every image has its own randomness, a function of the step's and of the image's place in the batch: the number of devices changes
nothing. All steps are computed for all images and then chosen, so a step costs the same however rarely it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxcell.geometry.intensity import add_scaled, hole_boxes, raise_to, stretch, within

__all__ = ["DEVICE_POLICIES", "add_noise", "augment_images", "change_contrast", "change_gamma", "coarse_dropout",
           "device_augmentation", "shuffle_channels"]

GRAY = 1e-4     # channels may differ by this in a grey image: compiled code rounds them apart

DeviceStep = Callable[[jax.Array, jax.Array], jax.Array]        # (image [H, W, C], key) -> image
DeviceSteps = Sequence[tuple[float, DeviceStep]]                # (probability, step), in the order of application


def augment_images(image: jax.Array, rng: jax.Array, *, steps: DeviceSteps) -> jax.Array:
    """Applies each step with its probability to each image on its own.

    Args:
      image: [B, H, W, C] float32.
      rng: key of this training step.
      steps: (probability, step), in the order of application.

    Returns:
      [B, H, W, C] float32, in [0, 1] if the image is (see `jaxcell.geometry.intensity`).
    """
    return jax.vmap(partial(_augment, steps=steps))(image, jax.random.split(rng, image.shape[0]))


def _augment(image: jax.Array, key: jax.Array, steps: DeviceSteps) -> jax.Array:
    for number, (probability, step) in enumerate(steps):
        coin, draws = jax.random.split(jax.random.fold_in(key, number))
        image = jnp.where(jax.random.bernoulli(coin, probability), step(image, draws), image)
    return image


def change_gamma(image: jax.Array, key: jax.Array, *, limits: tuple[float, float] = (0.8, 1.2)) -> jax.Array:
    """Raises intensities to a power drawn from `limits`."""
    return raise_to(image, jax.random.uniform(key, minval=limits[0], maxval=limits[1]))


def change_contrast(image: jax.Array, key: jax.Array, *, contrast: tuple[float, float] = (0.8, 1.25), brightness: float = 0.1
                    ) -> jax.Array:
    """Stretches intensities about their mean by a factor from `contrast` and adds up to +- `brightness`; clips."""
    keys = jax.random.split(key)
    return stretch(image, jax.random.uniform(keys[0], minval=contrast[0], maxval=contrast[1]),
                   jax.random.uniform(keys[1], minval=-brightness, maxval=brightness))


def add_noise(image: jax.Array, key: jax.Array, *, deviation: tuple[float, float] = (0.01, 0.05)) -> jax.Array:
    """Adds Gaussian noise of a standard deviation from `deviation`, the same to all channels of a grey image; clips."""
    keys = jax.random.split(key)
    noise = jax.random.normal(keys[0], image.shape, image.dtype)
    gray = jnp.abs(image - image[..., :1]).max() < GRAY
    noise = jnp.where(gray, noise[..., :1], noise)
    return add_scaled(image, noise, jax.random.uniform(keys[1], minval=deviation[0], maxval=deviation[1]))


def coarse_dropout(image: jax.Array, key: jax.Array, *, holes: tuple[int, int] = (1, 8),
                   sides: tuple[float, float] = (1 / 64, 1 / 16), fill: float = 0.0) -> jax.Array:
    """Covers rectangles: see `jaxcell.data.augment.coarse_dropout`."""
    keys, shape = jax.random.split(key), (image.shape[0], image.shape[1])
    boxes = hole_boxes(jax.random.uniform(keys[0], (holes[1], 4)), shape, sides)
    boxes *= (jnp.arange(holes[1]) < jax.random.randint(keys[1], (), holes[0], holes[1] + 1))[:, None]      # empty beyond
    return jnp.where(within(boxes, shape)[..., None], fill, image)


def shuffle_channels(image: jax.Array, key: jax.Array) -> jax.Array:
    """Puts the channels in a random order."""
    return image[..., jax.random.permutation(key, image.shape[-1])]


LIGHT: DeviceSteps = ((0.3, change_gamma), (0.3, change_contrast), (0.15, partial(add_noise, deviation=(0.005, 0.03))))

DEVICE_POLICIES: Mapping[str, DeviceSteps] = {
    "none": (),
    "light": LIGHT,                                                                 # of the host's "light", all but the blur
    "maunet": ((0.25, partial(add_noise, deviation=(0.0, 0.1))), (0.25, partial(change_gamma, limits=(1.0, 2.0)))),
    "strong": (*LIGHT, (0.3, coarse_dropout), (0.1, shuffle_channels)),
}
"""name -> steps."""


def device_augmentation(name: str) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    """(image [B, H, W, C], rng) -> image for `make_train_step`, or None for "none".

    Raises:
      ValueError: unknown name.
    """
    if name not in DEVICE_POLICIES:
        raise ValueError(f"config.data.device_augment={name!r} is unknown; it is one of {', '.join(DEVICE_POLICIES)}.")
    return partial(augment_images, steps=DEVICE_POLICIES[name]) if DEVICE_POLICIES[name] else None
