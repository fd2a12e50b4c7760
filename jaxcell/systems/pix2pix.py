"""pix2pix: one image made of another, here the brightfield planes that belong to a phase-contrast image.

A U-Net draws, and a second network judges patches of what it drew beside what it was shown. It makes images, not cells.

Source: Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017; the sparse_seunet thesis,
section 4.4.2; junyanz/pytorch-CycleGAN-and-pix2pix, models/networks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.losses.adversarial import ADVERSARIAL
from jaxcell.losses.regression import absolute_error, squared_error
from jaxcell.models.layers import BatchNorm, Conv, ConvTranspose
from jaxcell.models.precision import compute_dtype
from jaxcell.models.resize import resize_nearest
from jaxcell.pretrained.pix2pix import load_generator
from jaxcell.system import Adversary, System, chosen
from jaxcell.types import Instances, Sample

DISTANCES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"l1": absolute_error, "l2": squared_error}
"""How far an image is from the real one, pixel by pixel."""

leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
small_normal = nn.initializers.normal(0.02)
conv4 = partial(Conv, kernel=4, padding=1, kernel_init=small_normal, bias_init=nn.initializers.zeros)
conv4_transposed = partial(ConvTranspose, kernel=4, stride=2, kernel_init=small_normal)


def double_transposed(x: jax.Array, features: int, *, use_bias: bool = True, dtype: Any, name: str) -> jax.Array:
    """Transposed convolution 4x4, as the reference: [B, H, W, C] -> [B, 2 H, 2 W, features].

    Even and odd pixels have weights of their own, which shows as a grid where they do not agree.
    """
    return conv4_transposed(features, use_bias=use_bias, dtype=dtype, name=name)(x)


def double_nearest(x: jax.Array, features: int, *, use_bias: bool = True, dtype: Any, name: str) -> jax.Array:
    """Every pixel four times, then a convolution 3x3: the same weights for all pixels, and no grid.

    Source: Odena et al., "Deconvolution and checkerboard artifacts", Distill 2016.
    """
    x = resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
    return Conv(features, use_bias=use_bias, kernel_init=small_normal, dtype=dtype, name=name)(x)


UPSAMPLINGS: Mapping[str, Callable[..., jax.Array]] = {"transposed": double_transposed, "nearest": double_nearest}
"""Ways to double an image's size, which hold parameters: called in a module."""


EXACT = ("none", "flips")
"""Policies that leave the planes of an image what they are."""


class TranslationNetwork(nn.Module):
    """U-Net of convolutions 4x4 with stride 2 down to a single pixel of 2 ** levels, and back up.

    Attributes:
      inputs: planes of the image that are looked at, the first so many.
      outputs: planes that are drawn.
      levels: times that the image is halved; 9 for crops of 512.
      width: channels of the first level; they double up to 8 times as many.
      dropout: share of features dropped in the middle levels of the way up (all but the innermost and the last 4).
      upsampling: a value of `UPSAMPLINGS`.
      dtype: of the arithmetic; parameters, norms and outputs are float32.

    Source: UnetGenerator of the reference, with batch norm.
    Departs: nothing; the thesis speaks of a last layer of 1x1, which would leave the image at half its size.
    """

    inputs: int = 1
    outputs: int = 2
    levels: int = 9
    width: int = 64
    dropout: float = 0.5
    upsampling: Callable[..., jax.Array] = double_transposed
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False, *, noise: bool | None = None) -> dict[str, jax.Array]:
        """Planes of each image.

        Args:
          image: [B, H, W, C] in [0, 1], C >= inputs, H and W multiples of 2 ** levels.
          train: batch statistics instead of running statistics.
          noise: drop features, which needs a "dropout" rng; None: as in training. The reference drops them in prediction too:
            it is where the variety of its images comes from.

        Returns:
          `planes` [B, H, W, outputs] float32 in [-1, 1].
        """
        conv = partial(conv4, stride=2, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not (train if noise is None else noise))
        double = partial(self.upsampling, dtype=self.dtype)
        features = [self.width * min(2 ** level, 8) for level in range(self.levels)]

        x = conv(features[0], name="down0")(2 * image[..., :self.inputs].astype(jnp.float32) - 1)
        skips = []
        for level in range(1, self.levels):
            x = leaky_relu(x)
            skips.append(x)
            x = conv(features[level], name=f"down{level}")(x)
            x = norm(name=f"down{level}_norm")(x) if level < self.levels - 1 else x
        for level in range(self.levels - 1, 0, -1):
            x = double(nn.relu(x), features[level - 1], use_bias=False, name=f"up{level}")
            x = norm(name=f"up{level}_norm")(x)
            x = drop()(x) if 4 <= level < self.levels - 1 else x
            x = jnp.concatenate([skips[level - 1], x], axis=-1)
            self.sow("intermediates", f"level{level}", x)
        x = double(nn.relu(x), self.outputs, name="up0")
        return {"planes": jnp.tanh(x.astype(jnp.float32))}


class PatchDiscriminator(nn.Module):
    """Says of every patch of 70 x 70 pixels whether it is real.

    Attributes:
      width: channels of the first layer; they double up to 8 times as many.
      strided: layers that halve the image; 3 see 70 pixels.
      dtype: as in `TranslationNetwork`.

    Source: NLayerDiscriminator of the reference, with batch norm.
    Departs: nothing; the thesis gives every layer stride 2, which would not see 70 pixels.
    """

    width: int = 64
    strided: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
        """Logits of each patch, above 0 for real.

        Args:
          image: [B, H, W, C] in [-1, 1]: what was shown and what was made of it, in this order.
          train: batch statistics instead of running statistics.

        Returns:
          [B, h, w, 1] float32; h = H / 8 - 2 with 3 strided layers.
        """
        conv = partial(conv4, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        x = leaky_relu(conv(self.width, stride=2, use_bias=True, name="conv0")(image))
        for layer in range(1, self.strided + 1):
            stride = 2 if layer < self.strided else 1
            x = conv(self.width * min(2 ** layer, 8), stride=stride, name=f"conv{layer}")(x)
            x = leaky_relu(norm(name=f"norm{layer}")(x))
            self.sow("intermediates", f"layer{layer}", x)
        return conv(1, use_bias=True, name="output")(x).astype(jnp.float32)


def build(config: Any) -> System:
    """Assembles the system from `config.model` and `.loss`.

    Raises:
      ValueError: a part's name is unknown, the image's planes are not those of input and output together, or they are augmented
        by more than flips.
    """
    m, loss = config.model, config.loss
    if config.data.channels != m.inputs + m.outputs:
        raise ValueError(f"config.data.channels={config.data.channels}; an image to learn from has the {m.inputs} planes that "
                         f"are shown and the {m.outputs} that are drawn. Set it to {m.inputs + m.outputs}.")
    if config.data.augment not in EXACT or config.data.device_augment != "none":
        raise ValueError(f"config.data.augment={config.data.augment!r}, config.data.device_augment="
                         f"{config.data.device_augment!r}; what changes intensities or channels makes another pair of a pair. "
                         f"Use {' or '.join(EXACT)}, and none on the device.")
    network = TranslationNetwork(inputs=m.inputs, outputs=m.outputs, levels=m.levels, width=m.width, dropout=m.dropout,
                                 upsampling=chosen(UPSAMPLINGS, "model.upsampling", m.upsampling), dtype=compute_dtype(m.dtype))
    judge = PatchDiscriminator(width=m.judge_width, strided=m.judge_strided, dtype=compute_dtype(m.dtype))
    adversary = Adversary(judge, partial(shown_planes, inputs=m.inputs),
                          chosen(ADVERSARIAL, "loss.adversarial", loss.adversarial))
    return System(
        model=network, targets=partial(plane_targets, inputs=m.inputs), decode=no_cells, divisor=2 ** m.levels,
        loss=partial(translation_objective, distance=loss.distance, weight=loss.weight,
                     error=chosen(DISTANCES, "loss.distance", loss.distance)),
        load=load_generator, adversary=adversary, draw=drawn_planes)


def plane_targets(sample: Sample, rng: np.random.Generator, *, inputs: int) -> dict[str, np.ndarray]:
    """The planes to draw: "planes" [H, W, outputs] float32 in [-1, 1], those behind the first `inputs` of the image."""
    return {"planes": 2 * sample.image[..., inputs:].astype(np.float32) - 1}


def shown_planes(maps: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, inputs: int) -> jax.Array:
    """What the discriminator sees, [B, H, W, inputs + outputs] in [-1, 1]: the condition first."""
    return jnp.concatenate([2 * batch["image"][..., :inputs] - 1, maps["planes"]], axis=-1)


def translation_objective(outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, distance: str, weight: float,
                          error: Callable[[jax.Array, jax.Array], jax.Array]) -> dict[str, jax.Array]:
    """Mean distance of the drawn planes from the real ones.

    Args:
      outputs: of the network.
      batch: of `plane_targets`.
      distance: name of the term.
      weight: of it; 100 in the paper, beside an adversarial term of weight 1.
      error: an entry of `DISTANCES`.
    """
    return {distance: weight * jnp.mean(error(outputs["planes"], batch["planes"]))}


def drawn_planes(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """[..., H, W, outputs] float32 in [0, 1]."""
    return (np.asarray(outputs["planes"], np.float32) + 1) / 2


def no_cells(outputs: Mapping[str, np.ndarray]) -> Instances:
    """Refuses.

    Raises:
      ValueError: always.
    """
    raise ValueError("pix2pix makes images, not cells; make them with `jaxcell synthesize`, and segment by another system.")
