"""MAUNet: classes with an anti-ambiguity proxy and a distance from two decoders, and three watersheds.

Source: Li et al., "MAUNet: modality-aware anti-ambiguity U-Net for multi-modality cell segmentation" (NeurIPS 2022 cell
segmentation challenge), code neurips22-cellseg_saltfish@c2b85d5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.decode.components import instances_from_labels
from jaxcell.decode.three_watersheds import class_probabilities, interior_pieces, three_watersheds
from jaxcell.geometry.labels import topmost
from jaxcell.losses.consistency import AGREEMENTS, distance_agreement
from jaxcell.losses.masks import FOCALS, dice_loss
from jaxcell.losses.regression import BALANCED
from jaxcell.models.decoders.unetr import SkipBlocks, UnetrDecoder
from jaxcell.models.encoders.resnet import Bottleneck, ResNet
from jaxcell.models.layers import BatchNorm, Conv, ConvTranspose, InstanceNorm, Part, ResidualBlock, fan_out_normal
from jaxcell.models.precision import compute_dtype
from jaxcell.pretrained.maunet import load_maunet
from jaxcell.system import Planes, System, chosen
from jaxcell.targets.boundaries import distance_target, three_classes
from jaxcell.targets.pixels import annotated
from jaxcell.types import Instances, Sample

Maps = dict[str, np.ndarray]
Terms = dict[str, jax.Array]

ENCODERS: Mapping[str, Part] = {
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "wideresnet50": partial(ResNet, stage_sizes=(3, 4, 6), block=partial(Bottleneck, width_per_group=128)),
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=ResidualBlock),
    "resnet6": partial(ResNet, stage_sizes=(1, 1), block=ResidualBlock),
}
"""Encoders by name; `width` (64) of any may be bound smaller. The second does without its last stage; the last two are ours, for
few CPU cores and for tests."""

DIVISORS: Mapping[str, int] = {"resnet50": 32, "wideresnet50": 16, "resnet18": 32, "resnet6": 8}
"""The coarsest stride of each encoder."""

BRANCHES: Mapping[str, str] = {"resnet50": "branch1.", "wideresnet50": "branch2."}
"""What the names of a network begin with in a checkpoint that holds both."""

SEGMENTED: Mapping[str, tuple[str, ...]] = {"three_watersheds": ("distance",), "interior_pieces": ()}
"""Ways to find cells by name -> the maps they take beside the classes."""

CLASS_NAMES = ("background", "interior", "boundary")
CLASSES = len(CLASS_NAMES)      # proxies come behind them

WIDTHS = (1, 1, 2, 4, 8, 16)
"""Channels of the skip of the image, of the encoder's stem and of its stages, in widths of the decoders."""


class MAUNet(nn.Module):
    """Encoder, skips of image and features, and over them a decoder for the classes and one for the distance.

    The same network in training and prediction: `train` only chooses the encoder's batch statistics. Features are sown into
    the collection "intermediates": "encoder.i" of stride 2 ** i, "skips.i", "classes.i" and "distance.i" of stride 2 ** i.

    Attributes:
      encoder: an entry of `ENCODERS`.
      classes: channels of the classes: background, interior, boundary, and 4 with the anti-ambiguity proxy.
      distance: whether there is a decoder for the distance.
      width: channels of the finest level of the decoders; see `WIDTHS`.
      dtype: of the arithmetic; parameters, norms and outputs are float32.

    Source: neurips22-cellseg_saltfish@c2b85d5, net.py; the paper, sections 2.2.1 to 2.2.3.
    """

    encoder: Part = ENCODERS["resnet50"]
    classes: int = 4
    distance: bool = True
    width: int = 24
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Maps of each image.

        Args:
          image: [B, H, W, C] in [0, 1], H and W multiples of the encoder's coarsest stride.
          train: batch statistics instead of running statistics.

        Returns:
          float32: `classes` [B, H, W, classes] logits, and `distance` [B, H, W, 1], not bounded, if there is such a decoder.
        """
        conv, norm = partial(Conv, dtype=self.dtype), partial(InstanceNorm, dtype=self.dtype)
        parts: dict[str, Any] = {"conv": conv, "norm": norm, "act": nn.leaky_relu}
        image = image.astype(jnp.float32)
        encoded = self.encoder(conv=partial(conv, kernel_init=fan_out_normal), act=nn.relu, name="encoder",
                               norm=partial(BatchNorm, use_running_average=not train, dtype=self.dtype))(image)
        for i, feature in enumerate(encoded, start=1):
            self.sow("intermediates", f"encoder.{i}", feature)
        widths = [self.width * factor for factor in WIDTHS[:len(encoded) + 1]]
        skips = SkipBlocks(widths, name="skips", **parts)([image, *encoded])
        for i, feature in enumerate(skips):
            self.sow("intermediates", f"skips.{i}", feature)

        outputs, enlarge = {}, partial(ConvTranspose, dtype=self.dtype)
        for name, channels in (("classes", self.classes), *((("distance", 1),) if self.distance else ())):
            decoded = UnetrDecoder(conv_transpose=enlarge, name=f"{name}_decoder", **parts)(skips)
            for i, feature in enumerate(decoded):
                self.sow("intermediates", f"{name}.{i}", feature)
            outputs[name] = conv(channels, 1, use_bias=True, name=f"{name}_head")(decoded[0]).astype(jnp.float32)
        return outputs


def build(config: Any) -> System:
    """Assembles the system from `config.model`, `.targets`, `.loss` and `.decode`.

    Raises:
      ValueError: a part's name is unknown, or parts do not go together.
    """
    m, t, loss, d = config.model, config.targets, config.loss, config.decode
    model = MAUNet(encoder=partial(chosen(ENCODERS, "model.encoder", m.encoder), width=m.width), classes=CLASSES + m.proxies,
                   distance=m.distance, width=m.features, dtype=compute_dtype(m.dtype))
    segment = {
        "three_watersheds": partial(
            three_watersheds, background_below=d.background_below, interior_above=d.interior_above,
            least_interior=d.least_interior, skeleton=d.skeleton, skeleton_threshold=d.skeleton_threshold,
            peak_threshold=d.peak_threshold, small_fraction=d.small_fraction),
        "interior_pieces": partial(interior_pieces, interior_above=d.pieces.interior_above, least=d.pieces.least,
                                   holes=d.pieces.holes),
    }
    decode = partial(decode_maps, segment=chosen(segment, "decode.name", d.name), maps=SEGMENTED[d.name])
    if d.name == "three_watersheds" and not m.distance:
        raise ValueError("config.decode.name='three_watersheds' needs a distance, and config.model.distance is False; decode by "
                         "'interior_pieces'.")
    if not m.proxies and loss.agreement.endswith("without_proxy"):
        raise ValueError(f"config.loss.agreement={loss.agreement!r} leaves the proxy out, and config.model.proxies is 0; take "
                         f"{loss.agreement.removesuffix('_without_proxy')!r}.")
    objective = partial(maunet_objective, weights={name: w for name, w in loss.weights.items() if w},
                        focal=chosen(FOCALS, "loss.focal", loss.focal), balanced=chosen(BALANCED, "loss.balanced", loss.balanced))
    classes = partial(three_classes, divisor=t.divisor, least_interior=t.least_interior)
    targets = partial(maunet_targets, classes=classes, distance=partial(distance_target, beta=t.beta, measure=t.measure))
    return System(
        model=model, targets=targets, loss=objective, decode=decode, divisor=DIVISORS[m.encoder],
        consistency=partial(maunet_consistency, agreement=chosen(AGREEMENTS, "loss.agreement", loss.agreement)),
        planes=Planes(drawn_classes, partial(true_classes, classes=classes)),
        load=partial(load_maunet, branch=BRANCHES.get(m.encoder, "")))


def maunet_targets(sample: Sample, rng: np.random.Generator, *, classes: Callable[[np.ndarray], np.ndarray],
                   distance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Maps:
    """The maps that the two decoders shall draw.

    Args:
      sample: cropped, with labels; where cells overlap a pixel belongs to the one in the last layer.
      rng: of this sample; nothing is random here.
      classes: labels [H, W] -> [H, W] in 0 to 2.
      distance: (labels, classes) -> [H, W].

    Returns:
      "classes" [H, W] int32, "distance" [H, W, 1] float32, and "annotated" [H, W] float32, 0 where the label is -1.
    """
    assert sample.labels is not None
    labels = topmost(sample.labels)
    kinds = classes(labels)
    return {"classes": kinds, "distance": distance(labels, kinds)[..., None], "annotated": annotated(labels)}


def maunet_objective(
    outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, weights: Mapping[str, float],
    focal: Callable[[jax.Array, jax.Array], jax.Array] = FOCALS["released"],
    balanced: Callable[..., jax.Array] = BALANCED["batch"],
) -> Terms:
    """Dice and focal loss of the classes, and the error of the distance, inside and outside of cells alike.

    A proxy takes its share of the softmax and is never a target.

    Args:
      outputs: of the network.
      batch: of `maunet_targets`.
      weights: of the terms "dice", "focal" and "distance" (1 each); a term without weight is not computed.
      focal: an entry of `FOCALS`.
      balanced: an entry of `BALANCED`.

    Returns:
      term -> scalar, each a mean over the annotated pixels of the batch, Dice over its images and classes.

    Source: the paper, equations 1 and 2; neurips22-cellseg_saltfish@c2b85d5, train.py (the defaults).
    Departs: pixels to be ignored count nowhere; the reference has none.
    """
    logits, counted = outputs["classes"], batch["annotated"][..., None]
    target = jax.nn.one_hot(batch["classes"], CLASSES, dtype=logits.dtype) * counted
    terms = {"dice": lambda: jnp.mean(dice_loss(jax.nn.softmax(logits)[..., :CLASSES] * counted, target)),
             "focal": lambda: jnp.sum(focal(logits, target) * counted) / (CLASSES * jnp.maximum(jnp.sum(counted), 1.0))}
    if "distance" in outputs:
        terms["distance"] = lambda: jnp.mean(balanced(outputs["distance"], batch["distance"], counted=counted))
    return {name: weights[name] * term() for name, term in terms.items() if name in weights}


def maunet_consistency(outputs: Mapping[str, jax.Array], other: Mapping[str, jax.Array], *,
                       agreement: Callable[[jax.Array, jax.Array], jax.Array]) -> Terms:
    """How far a network is from what another one says of the same images.

    Args:
      outputs: of the network.
      other: the other network's.
      agreement: an entry of `AGREEMENTS`, for the classes.

    Returns:
      "classes" and, of networks that have it, "distance": scalars, means over all pixels.

    Source: the paper, equation 3; see `distance_agreement` for its last term.
    """
    terms = {"classes": jnp.mean(agreement(outputs["classes"], other["classes"]))}
    if "distance" in outputs:
        terms["distance"] = jnp.mean(distance_agreement(outputs["distance"], other["distance"]))
    return terms


def decode_maps(outputs: Mapping[str, np.ndarray], *, segment: Callable[..., np.ndarray] = three_watersheds,
                maps: Sequence[str] = ("distance",)) -> Instances:
    """The cells of one region; a cell's score is the mean probability that its pixels are no background.

    Args:
      outputs: "classes" [H, W, K] logits, and `maps` [H, W, 1].
      segment: (probabilities [H, W, 3], each of `maps` [H, W]) -> labels [H, W].
      maps: the outputs that `segment` takes.
    """
    probabilities = class_probabilities(outputs["classes"], classes=CLASSES)
    labels = segment(probabilities, *(outputs[name][..., 0] for name in maps))
    return instances_from_labels(labels, 1 - probabilities[..., 0])


def drawn_classes(outputs: Mapping[str, np.ndarray]) -> Maps:
    """Of each class where it is the likeliest, 1 or 0: logits "classes" [..., H, W, K] -> name -> [..., H, W, 1] float32.

    A proxy is never the answer.
    """
    likeliest = outputs["classes"][..., :CLASSES].argmax(axis=-1)
    return _by_name(likeliest, CLASS_NAMES)


def true_classes(sample: Sample, names: tuple[str, ...], *, classes: Callable[[np.ndarray], np.ndarray]) -> Maps:
    """The same of the annotation: name -> [H, W, 1] float32, 0 or 1.

    Args:
      sample: with labels.
      names: of `CLASS_NAMES`.
      classes: labels [H, W] -> [H, W] in 0 to 2.
    """
    assert sample.labels is not None
    return _by_name(classes(topmost(sample.labels)), names)


def _by_name(kinds: np.ndarray, names: Sequence[str]) -> Maps:
    return {name: (kinds == CLASS_NAMES.index(name))[..., None].astype(np.float32) for name in names}
