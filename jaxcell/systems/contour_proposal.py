"""Uncertainty-aware contour proposal network: a dense grid of proposed cell outlines, refined and ranked.

Source: Upschulte et al., "Uncertainty-aware contour proposal networks for cell segmentation in multi-modality high-resolution
microscopy images" (NeurIPS 2022 cell segmentation challenge), code neurips22-cell-seg@ab6a154; Upschulte et al., "Contour
proposal networks for biomedical instance segmentation", Medical Image Analysis 2022, code celldetection 0.4.9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.decode.contours import decode_contours
from jaxcell.geometry.labels import to_layers
from jaxcell.losses.contours import TeacherThresholds, contour_objective
from jaxcell.models.decoders.fpn import FPNDecoder
from jaxcell.models.decoders.unet import UNetDecoder
from jaxcell.models.encoders.resnet import Bottleneck, ResNet
from jaxcell.models.encoders.unet import PyramidPooling, UNetEncoder
from jaxcell.models.heads.contour import DenseHead, Reduce
from jaxcell.models.layers import BatchNorm, Conv, ConvBlock, GroupNorm, Part, ResidualBlock, fan_in_uniform, fan_out_normal
from jaxcell.models.precision import compute_dtype
from jaxcell.models.resize import resize_bilinear, resize_nearest
from jaxcell.pretrained.contour_proposal import load_contour_proposal
from jaxcell.system import System, Teaching, chosen
from jaxcell.targets.contours import contour_targets
from jaxcell.types import Instances, Sample

ENCODERS: Mapping[str, Part] = {
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=ResidualBlock),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=ResidualBlock),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck),
    "resnext101_32x8d": partial(ResNet, stage_sizes=(3, 4, 23, 3),
                                block=partial(Bottleneck, groups=32, width_per_group=8)),
    "wide_resnet50_2": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, width_per_group=128)),
    "unet22": UNetEncoder,
}
"""Encoders by name; `width` (64) of any may be bound smaller."""

POOLINGS: Mapping[str, Part | None] = {
    "none": None,
    "pyramid": PyramidPooling,
    "pyramid_and_input": partial(PyramidPooling, keep_input=True),
}
"""What ends the encoder; `features` (64 a scale) and `scales` may be bound."""

DECODERS: Mapping[str, Part] = {
    "unet": partial(UNetDecoder, block=partial(ConvBlock, use_bias=True)),
    "full_resolution_unet": partial(UNetDecoder, block=partial(ConvBlock, use_bias=True), bridge=ConvBlock),
    "residual_unet": partial(UNetDecoder, block=ResidualBlock),
    "fpn": FPNDecoder,
}
"""Decoders by name: those of the package (the second over ResNets) and, with residual blocks, the challenge's."""

DECODER_NORMS: Mapping[str, Part | None] = {"batch": None, "group": partial(GroupNorm, num_groups=32)}
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"relu": nn.relu, "leaky_relu": nn.leaky_relu}

DECODER_INITS: Mapping[str, nn.initializers.Initializer] = {"fan_out_normal": fan_out_normal, "fan_in_uniform": fan_in_uniform}
"""The challenge's Kaiming normal, and PyTorch's default."""

FUSIONS: Mapping[str, Part] = {
    "reduce": Reduce,
    "conv_norm_act": partial(ConvBlock, kernel=1, depth=1, use_bias=True),
}
"""How a head joins several features: the challenge's bare 1x1 convolution or the package's with norm and activation."""


class ContourProposalNetwork(nn.Module):
    """Encoder, decoder and dense heads for score, location, Fourier contour, boundary uncertainty and refinement.

    The same network in training and prediction: `train` only chooses batch statistics and dropout (which needs a "dropout"
    rng unless `dropout` is 0). Features are sown as "encoder.i" and "decoder.i" into the collection "intermediates".

    Attributes:
      encoder: an entry of `ENCODERS`; the defaults of all parts are the challenge's.
      pooling: an entry of `POOLINGS`.
      decoder: an entry of `DECODERS`.
      decoder_norm: norm of the decoder; None for the encoder's batch norm.
      decoder_act: activation of the decoder.
      decoder_init: initialisation of the decoder's kernels; everything else has PyTorch's default.
      order: Fourier order O.
      buckets: refinement buckets K.
      margin: largest displacement of one refinement step, pixels.
      uncertainty: whether there is a head for the four boundaries.
      contour_features: features under the Fourier head, named "decoder.i" or "encoder.i", 0 the finest; the first one of a
        tuple gives the grid, and those of score, location, contour and uncertainty must agree.
      location_features: features under the location head; None for `contour_features`.
      uncertainty_features: features under the uncertainty head; None for `contour_features`.
      score_features: features under the score head.
      refinement_features: features under the refinement head.
      fuse: an entry of `FUSIONS`, used where a head has several features.
      head_kernel: side of the heads' first convolution.
      head_features: hidden channels of the heads; None for those of their input.
      dropout: share of the heads' hidden channels dropped in training.
      resize: "outputs": the refinement head works on its own grid and its result is resized to the image (challenge);
        "features": its input is (package), which costs (image / grid) ** 2 times as much.
      mean: of each channel, subtracted from the image in [0, 1].
      std: of each channel, divides it; one value serves any number of channels.
      dtype: of the arithmetic; parameters, norms and outputs are float32.

    Source: neurips22-cell-seg@ab6a154, neurips/nn/cpn_model.py (CPNCore); celldetection 0.4.9, models/cpn.py.
    Departs: coordinates are (y, x) in every output; uncertainty is always a raw logit (the package applies the sigmoid here).
    """

    encoder: Part = ENCODERS["resnext101_32x8d"]
    pooling: Part | None = PyramidPooling
    decoder: Part = DECODERS["residual_unet"]
    decoder_norm: Part | None = DECODER_NORMS["group"]
    decoder_act: Callable[[jax.Array], jax.Array] = nn.leaky_relu
    decoder_init: nn.initializers.Initializer = fan_out_normal
    order: int = 25
    buckets: int = 6
    margin: float = 3.0
    uncertainty: bool = True
    contour_features: tuple[str, ...] = ("decoder.1",)
    location_features: tuple[str, ...] | None = None
    uncertainty_features: tuple[str, ...] | None = None
    score_features: tuple[str, ...] = ("decoder.1", "encoder.1")
    refinement_features: tuple[str, ...] = ("decoder.0", "encoder.0")
    fuse: Part = Reduce
    head_kernel: int = 7
    head_features: int | None = None
    dropout: float = 0.1
    resize: Literal["outputs", "features"] = "outputs"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Dense proposals of each image.

        Args:
          image: [B, H, W, C] in [0, 1].
          train: batch statistics and dropout instead of running statistics.

        Returns:
          float32 on the head grid [h, w]: `scores` [B, h, w, 1] logits; `locations` [B, h, w, 2] offsets (y, x) from the
          pixel index and `fourier` [B, h, w, 4 * O], per order (y cos, y sin, x cos, x sin), both in grid units;
          `uncertainty` [B, h, w, 4] logits (top, left, bottom, right) if there is such a head; and on the image
          `refinement` [B, H, W, 2 * K], per bucket (y, x), pixels.

        Raises:
          ValueError: `mean` or `std` do not fit the channels, or a feature name is unknown.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, image.shape[-1]):
                raise ValueError(f"ContourProposalNetwork: {name} {values} has {len(values)} values for an image of "
                                 f"{image.shape[-1]} channels; give one for each channel, or one for all.")
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        parts: dict[str, Any] = {"conv": conv, "norm": norm, "act": nn.relu}

        x = (image.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        encoded = self.encoder(name="encoder", **parts)(x)
        if self.pooling is not None:
            encoded = [*encoded, self.pooling(name="pooling", **parts)(encoded[-1])]
        decoder_norm = norm if self.decoder_norm is None else partial(self.decoder_norm, dtype=self.dtype)
        decoded = self.decoder(conv=partial(conv, kernel_init=self.decoder_init), norm=decoder_norm, act=self.decoder_act,
                               name="decoder")(encoded)
        features = {f"encoder.{i}": x for i, x in enumerate(encoded)} | {f"decoder.{i}": x for i, x in enumerate(decoded)}
        for name, feature in features.items():
            self.sow("intermediates", name, feature)

        def joined(head: str, names: tuple[str, ...]) -> jax.Array:
            unknown = [name for name in names if name not in features]
            if unknown or not names:
                raise ValueError(f"ContourProposalNetwork: no features {unknown or names} for the {head} head; there are "
                                 f"{sorted(features)}.")
            first, *others = (features[name] for name in names)
            if not others:
                return first
            x = jnp.concatenate([first, *(resize_nearest(f, first.shape[1:3]) for f in others)], axis=-1)
            return self.fuse(first.shape[-1], name=f"{head}_fuse", **parts)(x)

        dropout = partial(nn.Dropout, self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        head: Part = partial(DenseHead, kernel=self.head_kernel, features=self.head_features, dropout=dropout, **parts)
        score = joined("score", self.score_features)
        location = joined("location", self.location_features or self.contour_features)
        fourier = joined("fourier", self.contour_features)
        outputs = {"scores": head(1, name="score_head")(score), "locations": head(2, name="location_head")(location),
                   "fourier": head(4 * self.order, name="fourier_head")(fourier)}
        if self.uncertainty:
            uncertainty = joined("uncertainty", self.uncertainty_features or self.contour_features)
            outputs["uncertainty"] = head(4, name="uncertainty_head")(uncertainty)

        size = image.shape[1:3]
        refinement = joined("refinement", self.refinement_features)
        if self.resize == "features":
            refinement = resize_bilinear(refinement, size)
        refinement = head(2 * self.buckets, name="refinement_head")(refinement).astype(jnp.float32)
        outputs["refinement"] = resize_bilinear(jnp.tanh(refinement) * self.margin, size)
        return {name: value.astype(jnp.float32) for name, value in outputs.items()}


DIVISOR = 32    # the coarsest feature of every encoder


def build(config: Any) -> System:
    """Assembles the system from `config.model`, `.targets`, `.loss`, `.decode` and `.data.channels`.

    Raises:
      ValueError: a part's name is unknown; lists those that exist.
    """
    m, t, loss, d = config.model, config.targets, config.loss, config.decode
    model = ContourProposalNetwork(
        encoder=partial(chosen(ENCODERS, "model.encoder", m.encoder), width=m.width),
        pooling=chosen(POOLINGS, "model.pooling", m.pooling),
        decoder=chosen(DECODERS, "model.decoder", m.decoder),
        decoder_norm=chosen(DECODER_NORMS, "model.decoder_norm", m.decoder_norm),
        decoder_act=chosen(ACTIVATIONS, "model.decoder_act", m.decoder_act),
        order=m.order, buckets=m.buckets, margin=m.margin, uncertainty=m.uncertainty,
        contour_features=tuple(m.contour_features), score_features=tuple(m.score_features),
        refinement_features=tuple(m.refinement_features), fuse=chosen(FUSIONS, "model.fuse", m.fuse),
        decoder_init=chosen(DECODER_INITS, "model.decoder_init", m.decoder_init),
        head_kernel=m.head_kernel, head_features=m.head_features or None, dropout=m.dropout, resize=m.resize,
        mean=tuple(m.mean), std=tuple(m.std), dtype=compute_dtype(m.dtype))

    image = jax.ShapeDtypeStruct((1, 2 * DIVISOR, 2 * DIVISOR, config.data.channels), jnp.float32)
    shapes, _ = jax.eval_shape(model.init_with_output, {"params": jax.random.PRNGKey(0)}, image)
    stride = 2 * DIVISOR // shapes["scores"].shape[1]

    targets = partial(
        contour_targets, order=m.order, samples=t.samples, stride=stride, max_background_distance=t.max_background_distance,
        min_foreground_distance=t.min_foreground_distance, max_cells=t.max_cells, max_foreground=t.max_foreground,
        max_iterations=t.max_iterations, distance=t.distance, min_area=t.min_area, closed_outlines=t.closed_outlines)
    objective = partial(
        contour_objective, weights={k: w for k, w in loss.weights.items() if w}, background_weight=loss.background_weight,
        box_confidence=loss.box_confidence, refinement=loss.refinement, refinement_iterations=t.max_iterations,
        iou_kind=loss.iou_kind, order_weighting=loss.order_weighting, min_box_size=loss.min_box_size,
        uncertainty_factor=loss.uncertainty_factor)
    decode = partial(
        decode_contours, score_threshold=d.score_threshold, samples=t.samples, iterations=t.max_iterations,
        nms_threshold=d.nms_threshold, nms_weight=d.nms_weight, certainty_threshold=d.certainty_threshold or None,
        max_proposals=d.max_proposals or None)
    teaching = Teaching(targets=partial(taught_targets, targets=targets, decode=decode),
                        loss=partial(objective, teacher=TeacherThresholds(**loss.teacher)))
    return System(model=model, targets=targets, loss=objective, decode=decode, divisor=DIVISOR, load=load_contour_proposal,
                  teaching=teaching if m.uncertainty else None)


def taught_targets(outputs: Mapping[str, np.ndarray] | None, sample: Sample, rng: np.random.Generator, *,
                   targets: Callable[[Sample, np.random.Generator], dict[str, np.ndarray]],
                   decode: Callable[[Mapping[str, np.ndarray]], Instances]) -> dict[str, np.ndarray]:
    """Targets of one image, and what the teacher thinks of them.

    Args:
      outputs: the teacher's for this image, without the batch axis; None for an annotated sample.
      sample: with labels, or without and with `outputs`: then the cells that the teacher finds are the labels.
      rng: of this sample.
      targets: of the system.
      decode: of the system; its score threshold says what the teacher calls a cell.

    Returns:
      What `targets` gives, and `teacher_scores` [M] and `teacher_uncertainty` [M, 4] of its cells and `teacher_score_maps`
      [h, w, 1], all float32 in [0, 1]. An annotated cell has score 1 and uncertainty 0, its image the score map 0.

    Source: neurips22-cell-seg@ab6a154, neurips/nn/cpn_model.py (what `CPN.compute_loss` asks of pseudo-labels).
    """
    if outputs is None:
        found = targets(sample, rng)
        scores, uncertainty = np.ones(len(found["ids"]), np.float32), np.zeros((len(found["ids"]), 4), np.float32)
        score_map = np.zeros((*found["labels"].shape, 1), np.float32)
    else:
        cells = decode(outputs)
        found = targets(replace(sample, labels=to_layers(cells)), rng)
        # `to_layers` numbers cell i as i + 1; 0 is an unused row.
        scores = np.concatenate([np.zeros(1, np.float32), cells.scores])[found["ids"]]
        uncertainty = np.concatenate([np.zeros((1, 4), np.float32), _uncertainties(cells)])[found["ids"]]
        score_map = 1 / (1 + np.exp(-outputs["scores"].astype(np.float32)))
    return found | {"teacher_scores": scores, "teacher_uncertainty": uncertainty, "teacher_score_maps": score_map}


def _uncertainties(cells: Instances) -> np.ndarray:
    return cells.extras["uncertainties"] if len(cells) else np.zeros((0, 4), np.float32)
