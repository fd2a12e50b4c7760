"""Mesmer: dense maps from a feature pyramid, and a watershed that grows cells from the peaks of one inside another.

Source: Yi, Da and Bai, "Optimization of Mesmer, a deep learning model for cytoplasmic segmentation using LIVECell dataset";
Greenwald et al., Nature Biotechnology 40, 2022; code vanvalenlab/deepcell-tf@f1839a4 and deepcell-toolbox@e8c1277.
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
from jaxcell.decode.deep_watershed import deep_watershed
from jaxcell.geometry.labels import topmost
from jaxcell.losses.pixels import weighted_cross_entropy
from jaxcell.losses.regression import squared_error
from jaxcell.models.decoders.panoptic import PanopticDecoder
from jaxcell.models.encoders.densenet import DenseNet
from jaxcell.models.encoders.efficientnet import EfficientNet
from jaxcell.models.encoders.keras_resnet import KerasResNet
from jaxcell.models.heads.semantic import SemanticHead
from jaxcell.models.inputs import append_location, divide_by_maximum, standardise, standardise_windows
from jaxcell.models.layers import BatchNorm, Conv, Part
from jaxcell.models.precision import compute_dtype
from jaxcell.models.resize import resize_bilinear, resize_nearest
from jaxcell.pretrained.mesmer import load_mesmer
from jaxcell.system import System, chosen
from jaxcell.targets.distance import inner_distance, outer_distance
from jaxcell.targets.pixels import annotated, foreground, pixelwise
from jaxcell.types import Instances, Sample

Maps = dict[str, np.ndarray]
Maker = Callable[[np.ndarray], np.ndarray]

ENCODERS: Mapping[str, Part] = {
    "resnet50": KerasResNet,
    "densenet201": DenseNet,
    "efficientnetb7": EfficientNet,
    "resnet26": partial(KerasResNet, stage_sizes=(2, 2, 2, 2)),
}
"""Encoders by name; `width` (64) of any may be bound smaller. The last one is ours, for few CPU cores."""

NORMALIZERS: Mapping[str, Callable[[jax.Array], jax.Array] | None] = {
    "none": None, "whole_image": standardise, "std": standardise_windows, "max": divide_by_maximum,
}
"""What the network does to the image first, by DeepCell's names."""

RESIZES: Mapping[str, Callable[[jax.Array, Sequence[int]], jax.Array]] = {"bilinear": resize_bilinear, "nearest": resize_nearest}

CLASSES: Mapping[str, int] = {"inner_distance": 1, "outer_distance": 1, "fgbg": 2, "pixelwise": 3}
"""Heads by name -> channels; one channel is a distance, several are probabilities of classes."""

INSIDE: Mapping[str, int] = {"pixelwise": 1, "fgbg": 1, "outer_distance": 0, "inner_distance": 0}
"""Which channel of a head says how surely a pixel is inside a cell."""

DIVISOR = 32    # the coarsest feature of every encoder


class PanopticNetwork(nn.Module):
    """Encoder, the finest level of a feature pyramid, and a head for each map.

    The same network in training and prediction: `train` chooses batch statistics and, in EfficientNets, which blocks are dropped
    (which needs a "dropout" rng). Features are sown into the collection "intermediates": "input", "encoder.i" of stride
    2 ** i, "pyramid" and "logits.<head>".

    Attributes:
      heads: (name, channels) of each; one channel ends in a rectifier, more in a softmax.
      encoder: an entry of `ENCODERS`.
      levels: of the encoder's features in the pyramid, C1 to C5; the last must be 5.
      features: channels of the pyramid.
      depthwise: whether the pyramid's 3x3 convolution works on each channel by itself ("lite": the paper's text, not the
        released code's default).
      head_features: channels of the heads' 3x3 convolutions, and between their 1x1 convolutions.
      resize: an entry of `RESIZES`, for pyramid and heads.
      scale: factor on the image, before anything else; EfficientNets expect images up to 255.
      normalize: an entry of `NORMALIZERS`.
      location: append every pixel's place.
      dtype: of the arithmetic; parameters, norms and outputs are float32.

    Source: vanvalenlab/deepcell-tf@f1839a4, deepcell/model_zoo/panopticnet.py, fpn.py, utils/backbone_utils.py.
    Departs: the image need not be square nor a power of two.
    """

    heads: tuple[tuple[str, int], ...] = (("inner_distance", 1), ("pixelwise", 3))
    encoder: Part = KerasResNet
    levels: tuple[int, ...] = (3, 4, 5)
    features: int = 256
    depthwise: bool = False
    head_features: tuple[int, int] = (64, 128)
    resize: Callable[[jax.Array, Sequence[int]], jax.Array] = resize_bilinear
    scale: float = 1.0
    normalize: Callable[[jax.Array], jax.Array] | None = None
    location: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Dense maps of each image.

        Args:
          image: [B, H, W, C], H and W multiples of 32.
          train: batch statistics instead of running statistics, and dropped blocks.

        Returns:
          head -> [B, H, W, channels] float32: at least 0 for one channel, else probabilities that add up to 1.

        Raises:
          ValueError: the levels are not consecutive up to 5, or two heads have one name.
        """
        first = self.levels[0] if self.levels else 0
        if first < 1 or self.levels != tuple(range(first, 6)):
            raise ValueError(f"PanopticNetwork: levels {self.levels}; they must run without gaps up to 5, such as (3, 4, 5).")
        if len(dict(self.heads)) < max(1, len(self.heads)):
            raise ValueError(f"PanopticNetwork: heads {self.heads}; there must be one at least, each name once.")
        conv = partial(Conv, kernel_init=nn.initializers.glorot_uniform(), bias_init=nn.initializers.zeros, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)

        x = image.astype(jnp.float32) * self.scale
        x = x if self.normalize is None else self.normalize(x)
        x = append_location(x) if self.location else x
        x = conv(3, 1, use_bias=True, name="conv_channels")(x)
        self.sow("intermediates", "input", x)
        encoded = self.encoder(conv=conv, norm=norm, dropout=partial(nn.Dropout, deterministic=not train), name="encoder")(x)
        for i, feature in enumerate(encoded, start=1):
            self.sow("intermediates", f"encoder.{i}", feature)
        x = PanopticDecoder(conv=conv, resize=self.resize, features=self.features, depthwise=self.depthwise, finest=first,
                            name="decoder")(encoded[first - 1:])
        self.sow("intermediates", "pyramid", x)

        outputs = {}
        for name, channels in self.heads:
            logits = SemanticHead(channels, first, conv=conv, norm=norm, resize=self.resize, features=self.head_features[0],
                                  final_features=self.head_features[1], name=f"{name}_head")(x).astype(jnp.float32)
            self.sow("intermediates", f"logits.{name}", logits)
            outputs[name] = nn.relu(logits) if channels == 1 else nn.softmax(logits)
        return outputs


def build(config: Any) -> System:
    """Assembles the system from `config.model`, `.targets`, `.loss` and `.decode`.

    Raises:
      ValueError: a part's name or a head is unknown, or the decoder asks for a head that the network has not.
    """
    m, t, loss, d = config.model, config.targets, config.loss, config.decode
    heads = tuple(m.heads)
    for key, name in (("decode.markers", d.markers), ("decode.interior", d.interior)):
        if name not in heads:
            raise ValueError(f"config.{key}={name!r} is no head of the network, which has {', '.join(heads)}.")
    model = PanopticNetwork(
        heads=tuple((name, chosen(CLASSES, "model.heads", name)) for name in heads),
        encoder=partial(chosen(ENCODERS, "model.encoder", m.encoder), width=m.width), levels=tuple(m.levels), features=m.features,
        depthwise=m.depthwise, head_features=tuple(m.head_features), resize=chosen(RESIZES, "model.resize", m.resize),
        scale=m.scale, normalize=chosen(NORMALIZERS, "model.normalize", m.normalize), location=m.location,
        dtype=compute_dtype(m.dtype))
    alpha = t.alpha if t.alpha == "auto" else float(t.alpha)
    makers = {
        "inner_distance": partial(inner_distance, alpha=alpha, beta=t.beta, erosion=t.erosion),
        "outer_distance": partial(outer_distance, erosion=t.erosion),
        "fgbg": partial(foreground, erosion=t.erosion),
        "pixelwise": partial(pixelwise, dilation=t.dilation),
    }
    watershed = partial(
        deep_watershed, maxima=d.maxima, radius=d.radius, maxima_threshold=d.maxima_threshold,
        maxima_smoothing=d.maxima_smoothing, interior_threshold=d.interior_threshold, interior_smoothing=d.interior_smoothing,
        expansion=d.expansion, erosion=d.erosion, small_objects=d.small_objects, holes=d.holes)
    decode = partial(decode_maps, markers=d.markers, interior=d.interior, watershed=watershed)
    return System(model=model, targets=partial(panoptic_targets, makers={name: makers[name] for name in heads}),
                  loss=partial(panoptic_objective, weights={name: loss.weights[name] for name in heads}), decode=decode,
                  divisor=DIVISOR, load=partial(load_mesmer, heads=heads))


def panoptic_targets(sample: Sample, rng: np.random.Generator, *, makers: Mapping[str, Maker]) -> Maps:
    """The maps that the heads shall draw.

    Args:
      sample: cropped, with labels; where cells overlap a pixel belongs to the one in the last layer.
      rng: of this sample; nothing is random here.
      makers: head -> (labels [H, W]) -> [H, W] or [H, W, K].

    Returns:
      head -> [H, W, K] float32; "annotated" [H, W] float32, 0 where the label is -1.
    """
    assert sample.labels is not None
    labels = topmost(sample.labels)
    maps = {name: make(labels) for name, make in makers.items()}
    return {name: value.reshape(*labels.shape, -1) for name, value in maps.items()} | {"annotated": annotated(labels)}


def panoptic_objective(outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, weights: Mapping[str, float]
                       ) -> dict[str, jax.Array]:
    """Squared error of distances and weighted cross entropy of classes, each a mean over the annotated pixels of the batch.

    Args:
      outputs: of the network.
      batch: of `panoptic_targets`.
      weights: head -> factor (the paper's: 1 for distances, 0.01 for classes).

    Returns:
      head -> scalar.

    Source: the paper, section 3 ("Semantic heads"); vanvalenlab/deepcell-tf@f1839a4, deepcell/losses.py.
    Departs: pixels to be ignored count nowhere; the reference has none.
    """
    count = jnp.maximum(jnp.sum(batch["annotated"]), 1.0)
    terms = {}
    for name, weight in weights.items():
        classes = outputs[name].shape[-1] > 1
        error = (weighted_cross_entropy(outputs[name], batch[name]) if classes else
                 squared_error(outputs[name], batch[name])[..., 0])
        terms[name] = weight * jnp.sum(error * batch["annotated"]) / count
    return terms


def decode_maps(outputs: Mapping[str, np.ndarray], *, markers: str, interior: str,
                watershed: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Instances:
    """The cells of one region.

    Args:
      outputs: head -> [H, W, K].
      markers: head whose peaks begin cells.
      interior: head in whose `INSIDE` channel they grow, and whose mean there is a cell's score.
      watershed: (map with peaks, map of the interior) -> labels [H, W].
    """
    inside = np.clip(outputs[interior][..., INSIDE[interior]], 0, 1)
    return instances_from_labels(watershed(outputs[markers][..., INSIDE[markers]], inside), inside)
