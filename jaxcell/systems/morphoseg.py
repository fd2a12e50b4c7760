"""MorphoSeg: TransUNet, a vision transformer between a ResNet and a cascade of upsamplings, trained beside its own outliers.

Source: Zhang et al., "MorphoSeg: an uncertainty-aware deep learning method for biomedical segmentation of complex cellular
morphologies"; Chen et al., "TransUNet", 2021; code RanchoGoose/MorphoSeg@a2ab9fe and Beckschen/TransUNet@02ef001.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.decode.classes import UNCERTAINTIES, class_cells
from jaxcell.geometry.labels import topmost
from jaxcell.losses.dice import squared_dice
from jaxcell.losses.outliers import PLACEMENTS, Synthesis, batch_synthesis, class_synthesis
from jaxcell.losses.pixels import softmax_cross_entropy
from jaxcell.losses.weighting import WEIGHTINGS, Weighting, total_loss
from jaxcell.models.backend import precise
from jaxcell.models.decoders.cascade import CascadedUpsampler
from jaxcell.models.encoders.hybrid_resnet import HybridResNet
from jaxcell.models.encoders.vit import VISION_SIZES, VisionSize, VisionTransformer
from jaxcell.models.layers import BatchNorm, Conv, Part
from jaxcell.models.precision import compute_dtype
from jaxcell.pretrained.morphoseg import load_morphoseg
from jaxcell.system import Arrays, StatefulLoss, System, chosen
from jaxcell.targets.pixels import foreground
from jaxcell.types import Sample

CLASSES = 2     # of a build from a config: background and cell
CHANNELS = 3    # of the first kernel, which is ImageNet's; grey images are repeated

STEMS: Mapping[str, Part | None] = {
    "none": None, "r50": HybridResNet, "r20": partial(HybridResNet, stage_sizes=(2, 2, 2), groups=8),
    "r11": partial(HybridResNet, stage_sizes=(1, 1, 1), groups=8),
}
"""What comes before the transformer, by name; "none": it sees patches of the image. The last two are ours, for few CPU cores and
for tests."""


class TransUNet(nn.Module):
    """Transformer on patches of the image or of a ResNet's features, and a cascade of upsamplings to the image's size.

    The same network in training and prediction: `train` chooses batch statistics in the cascade, and dropout (which needs a
    "dropout" rng).

    Attributes:
      classes: K; class 0 is the background.
      transformer: sizes; an entry of `VISION_SIZES`.
      stem: constructor of a ResNet whose features have strides 2, 4, 8 and 16, or None.
      skips: how many of these features, from stride 8 to finer ones, the cascade sees: 0 to 3.
      grid: places a side of the position embeddings: side of the image / 2 ** len(widths).
      widths: channels of the cascade's levels, coarse to fine. A patch has 2 ** len(widths) pixels a side.
      features: channels before the cascade.
      dropout: share of values of the transformer that training drops.
      dtype: of the arithmetic; parameters, norms, softmaxes and outputs are float32.

    Source: Chen et al., "TransUNet: Transformers make strong encoders for medical image segmentation", 2021;
      Beckschen/TransUNet@02ef001, vit_seg_modeling.py. `skips` is 0 in MorphoSeg's released settings, in spite of its figure 2.
    """

    classes: int = CLASSES
    transformer: VisionSize = VISION_SIZES["base"]
    stem: Part | None = HybridResNet
    skips: int = 0
    grid: int = 14
    widths: tuple[int, ...] = (256, 128, 64, 16)
    features: int = 512
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Logits of each pixel's classes.

        Args:
          image: [B, H, W, 1 or 3], H and W multiples of 2 ** len(widths).
          train: batch statistics instead of running statistics, and dropout.

        Returns:
          "classes" [B, H, W, K] float32.

        Raises:
          ValueError: more skips than there are, not four widths behind a stem, another number of channels, or sides that are no
            such multiples.
        """
        patch = 2 ** len(self.widths)
        if self.stem is not None and len(self.widths) != 4:
            raise ValueError(f"TransUNet: widths={self.widths} behind a stem of stride 16; it needs four widths, each of which "
                             "doubles the size.")
        most = 0 if self.stem is None else 3
        if not 0 <= self.skips <= most:
            raise ValueError(f"TransUNet: skips={self.skips}; this encoder has 0 to {most} features to skip to the cascade.")
        if image.shape[-1] not in (1, CHANNELS) or image.shape[1] % patch or image.shape[2] % patch:
            raise ValueError(f"TransUNet: images {image.shape}; they must have 1 or {CHANNELS} channels and sides that are "
                             f"multiples of {patch}. Set config.data.channels and config.data.crop.")
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        dropout = partial(nn.Dropout, self.dropout, deterministic=not train)

        x = precise(jnp.broadcast_to(image, (*image.shape[:3], CHANNELS)))
        features = [x] if self.stem is None else self.stem(dtype=self.dtype, name="stem")(x)
        x = VisionTransformer(self.transformer, patch * features[-1].shape[1] // image.shape[1], self.grid, dropout,
                              dtype=self.dtype, name="transformer")(features[-1])
        x = CascadedUpsampler(conv, norm, nn.relu, self.widths, self.features, name="cascade")(x, features[-2::-1][:self.skips])
        logits = conv(self.classes, 3, use_bias=True, name="head")(x)
        return {"classes": precise(logits)}


def build(config: Any) -> System:
    """Assembles the system from `config.model`, `.targets`, `.outliers`, `.loss` and `.decode`.

    Raises:
      ValueError: a part's name is unknown, or a number does not fit.
    """
    m, d = config.model, config.decode
    stem = chosen(STEMS, "model.stem", m.stem)
    patch = 2 ** len(m.widths)
    model = TransUNet(
        transformer=chosen(VISION_SIZES, "model.transformer", m.transformer), stem=stem and partial(stem, width=m.width),
        skips=m.skips, grid=config.data.crop // patch, widths=tuple(m.widths), features=m.features, dropout=m.dropout,
        dtype=compute_dtype(m.dtype))
    uncertainty = chosen(UNCERTAINTIES, "decode.uncertainty", d.uncertainty)
    cells = partial(class_cells, threshold=d.threshold, holes=d.holes, small_objects=d.small_objects, expansion=d.expansion,
                    uncertainty=d.uncertainty)
    return System(
        model=model, targets=partial(class_targets, erosion=config.targets.erosion), loss=segmentation_terms,
        decode=lambda outputs: cells(outputs["classes"]), divisor=patch, load=load_morphoseg,
        objective=segmentation_objective(synthesis=_synthesis(config.outliers), start_step=config.outliers.start_step,
                                         weighting=chosen(WEIGHTINGS, "loss.weighting", config.loss.weighting)),
        uncertainty=lambda outputs: uncertainty(outputs["classes"]))


def _synthesis(o: Any) -> Synthesis | None:
    """The outliers of `config.outliers`."""
    made: Mapping[str, Callable[[], Synthesis | None]] = {
        "none": lambda: None,
        "batch": lambda: batch_synthesis(sample_from=o.sample_from, select=o.select, ridge=o.ridge,
                                         place=chosen(PLACEMENTS, "outliers.placement", o.placement)),
        "classes": lambda: class_synthesis(classes=CLASSES, queue=o.queue, per_image=o.per_image, sample_from=o.sample_from,
                                           select=o.select, epsilon=o.epsilon, ridge=o.ridge),
    }
    return chosen(made, "outliers.name", o.name)()


def class_targets(sample: Sample, rng: np.random.Generator, *, erosion: int) -> dict[str, np.ndarray]:
    """The class of each pixel.

    Args:
      sample: cropped, with labels.
      rng: of this sample; nothing is random here.
      erosion: pixels that are taken off cells first, so that neighbours come apart (the authors: 0).

    Returns:
      "classes" [H, W] int32: 0 background, 1 cell, -1 to be ignored.
    """
    assert sample.labels is not None
    labels = topmost(sample.labels)
    classes = foreground(labels, erosion=erosion).argmax(-1)
    return {"classes": np.where(labels < 0, -1, classes).astype(np.int32)}


TERMS = ("cross_entropy", "dice", "outlier_cross_entropy", "outlier_dice")


def segmentation_losses(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cross entropy and Dice loss, each over all annotated pixels of the batch.

    Args:
      logits: [B, H, W, K].
      classes: [B, H, W] int, -1 where a pixel is to be ignored.

    Returns:
      [2]: the mean of the cross entropy; the mean of the classes' Dice losses, the background's among them.

    Source: MorphoSeg, equations 10 and 11; RanchoGoose/MorphoSeg@a2ab9fe, trainer_vos.py, utils.py.
    Departs: pixels to be ignored count nowhere; the reference has none.
    """
    there = (classes >= 0).astype(logits.dtype)
    cross_entropy = softmax_cross_entropy(logits, jnp.maximum(classes, 0)) * there
    probabilities = jax.nn.softmax(logits) * there[..., None]
    dice = squared_dice(probabilities, jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype))
    return jnp.stack([jnp.sum(cross_entropy) / jnp.maximum(jnp.sum(there), 1), jnp.mean(dice)])


def segmentation_terms(outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """TransUNet's own objective: half of each of the two `segmentation_losses`."""
    losses = 0.5 * segmentation_losses(outputs["classes"], batch["classes"])
    return dict(zip(TERMS[:2], losses, strict=True))


def segmentation_objective(*, synthesis: Synthesis | None, start_step: int, weighting: Weighting) -> StatefulLoss:
    """The two segmentation losses, and from a step on the same two of logits with virtual outliers among them.

    Its terms for the log are the losses as they are, and "weight/<term>" what each of them is multiplied with; without outliers
    (before the first ones: 0).

    Args:
      synthesis: puts outliers into logits; None for plain TransUNet.
      start_step: steps before the first outliers.
      weighting: of `jaxcell.losses.weighting`; of two losses before that step, of four after.

    Source: MorphoSeg, equations 12 to 16 and section 5.4.
    """
    count = 2 if synthesis is None else 4

    def start() -> dict[str, Any]:
        return {"weights": jnp.ones(count), "outliers": synthesis.start() if synthesis else {}}

    def loss(outputs: Arrays, batch: Arrays, memory: Any, step: jax.Array, rng: jax.Array
             ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        logits, classes, held = outputs["classes"], batch["classes"], memory["weights"]

        def plain(logits: jax.Array) -> tuple[jax.Array, ...]:
            total, losses, weights, kept = total_loss(partial(segmentation_losses, classes=classes), logits, held[:2], weighting)
            return total, *(jnp.pad(row, (0, count - 2)) for row in (losses, weights)), held.at[:2].set(kept)

        if synthesis is None:
            (total, losses, weights, held), outliers = plain(logits), memory["outliers"]
        else:
            keys = jax.random.split(rng)
            outliers = synthesis.remember(memory["outliers"], logits, classes, keys[0])

            def with_outliers(logits: jax.Array) -> tuple[jax.Array, ...]:
                def losses_of(logits: jax.Array) -> jax.Array:
                    replaced = synthesis.replace(logits, classes, outliers, keys[1])
                    return jnp.concatenate([segmentation_losses(x, classes) for x in (logits, replaced)])

                return total_loss(losses_of, logits, held, weighting)

            total, losses, weights, held = jax.lax.cond(step >= start_step, with_outliers, plain, logits)
        terms = dict(zip(TERMS, losses, strict=False))
        terms |= {f"weight/{name}": weight for name, weight in zip(TERMS, weights, strict=False)}
        return total, terms, {"weights": held, "outliers": outliers}

    return StatefulLoss(start, loss)
