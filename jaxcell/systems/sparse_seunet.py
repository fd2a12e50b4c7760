"""SparseSEU-Net: N overlapping masks without boxes, and semantic maps from decoupled decoders, over one SE-U-Net.

Source: Prytula, "Accurate whole cell instance segmentation from brightfield images", bachelor thesis, Ukrainian Catholic
University 2023; the author's code SlavkoPrytula/IAUNet@836185a; Cheng et al., "Sparse instance activation for real-time instance
segmentation", CVPR 2022, code hustvl/SparseInst@a899015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcell.decode.masks import decode_masks
from jaxcell.decode.semantic_watershed import decode_planes, plane_probabilities
from jaxcell.losses.instances import OBJECTNESS_ERRORS, instance_losses, resize_masks
from jaxcell.losses.overlaps import OVERLAP_LOSSES
from jaxcell.losses.pixels import binary_cross_entropy
from jaxcell.matching import MATCHERS, dice_scores, pair_scores
from jaxcell.models.decoders.instances import (
    EveryLevelBranch,
    InstanceDecoder,
    InstanceHead,
    LastLevelBranch,
    sigmoid_weights,
    softmax_weights,
)
from jaxcell.models.decoders.se_unet import SEUNetDecoder
from jaxcell.models.encoders.se_unet import SEUNetEncoder
from jaxcell.models.layers import BatchNorm, Conv, NoNorm, Part
from jaxcell.models.precision import compute_dtype
from jaxcell.pretrained.sparse_seunet import load_sparse_seunet
from jaxcell.system import Planes, System, chosen
from jaxcell.targets.masks import CROWD_RULES, annotated_pixels, instance_masks
from jaxcell.targets.overlaps import overlap_map
from jaxcell.targets.planes import PLANES, semantic_planes
from jaxcell.types import Sample

Maps = dict[str, np.ndarray]
Crowd = Callable[[Sample, np.random.Generator], Sample]

BRANCHES: Mapping[str, Part] = {"single": LastLevelBranch, "multi": EveryLevelBranch}
"""How instance and mask branch look at the decoder: at its last level, or at every one."""

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"sigmoid": sigmoid_weights, "softmax": softmax_weights}
"""What makes weights of instance activation maps: the thesis', and the released code's."""

BRANCH_NORMS: Mapping[str, Part | None] = {"batch": None, "none": NoNorm}
"""Norms in instance and mask branch: the released code's, and SparseInst's."""


class SparseSEUNet(nn.Module):
    """SE-U-Net with a decoder for each dense head, and one for instances.

    The same network in training and prediction: `train` only chooses batch statistics. Features are sown into the collection
    "intermediates": "encoder.i" (the last is the bottleneck), "skip.i", and for each decoder "<head>_decoder.i", coarse to fine.

    Attributes:
      heads: dense heads, each with its decoder and one channel.
      instances: `InstanceDecoder`, its settings bound; None for a semantic network.
      condition: head whose decoder's features the instance and mask branches see beside their own; None for none.
      encoder: `SEUNetEncoder`, its settings bound.
      decoder: `SEUNetDecoder`, its settings bound.
      branch_norm: norm of instance and mask branches; None for the batch norm of the rest.
      dtype: of the arithmetic; parameters, norms and outputs are float32.

    Source: as the module. No file with semantic heads was released; they are made as the released overlap decoder is.
    """

    heads: tuple[str, ...] = ()
    instances: Part | None = partial(InstanceDecoder, branch=EveryLevelBranch, head=partial(InstanceHead, queries=100))
    condition: str | None = None
    encoder: Part = SEUNetEncoder
    decoder: Part = SEUNetDecoder
    branch_norm: Part | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Masks and maps of each image.

        Args:
          image: [B, H, W, C], H and W multiples of the encoder's divisor.
          train: batch statistics instead of running statistics.

        Returns:
          float32 logits: each head [B, H, W, 1]; with instances `masks` [B, N, H, W], `scores` [B, N] and, if wanted,
          `objectness` [B, N].

        Raises:
          ValueError: a head occurs twice, `condition` is none of them, or sides do not divide.
        """
        if len(set(self.heads)) < len(self.heads) or (self.condition is not None and self.condition not in self.heads):
            raise ValueError(f"SparseSEUNet: heads {self.heads} and condition {self.condition!r}; each head occurs once, and the "
                             "condition is one of them.")
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        parts: dict[str, Any] = {"conv": conv, "norm": norm, "act": nn.relu}
        features, skips = self.encoder(name="encoder", **parts)(image.astype(jnp.float32))
        self._sow("encoder", features)
        self._sow("skip", skips)

        def decode(name: str) -> list[jax.Array]:
            steps = self.decoder(name=f"{name}_decoder", **parts)(features[-1], skips)
            self._sow(f"{name}_decoder", steps)
            return steps

        decoded = {name: decode(name) for name in self.heads}
        outputs = {name: conv(1, 1, use_bias=True, name=f"{name}_head")(steps[-1]) for name, steps in decoded.items()}
        if self.instances is not None:
            steps = decode("instance")
            if self.condition is not None:
                steps = [jnp.concatenate(pair, axis=-1) for pair in zip(steps, decoded[self.condition], strict=True)]
            branch_norm = norm if self.branch_norm is None else self.branch_norm
            found = self.instances(name="instances", conv=conv, norm=branch_norm, act=nn.relu)(steps)
            self.sow("intermediates", "kernels", found.pop("kernels"))
            outputs |= found | {"scores": found["scores"][..., 0]}
        return {name: value.astype(jnp.promote_types(value.dtype, jnp.float32)) for name, value in outputs.items()}

    def _sow(self, name: str, features: list[jax.Array]) -> None:
        for number, feature in enumerate(features):
            self.sow("intermediates", f"{name}.{number}", feature)


def build(config: Any) -> System:
    """Assembles the system from `config.model`, `.targets`, `.loss` and `.decode`.

    Raises:
      ValueError: a part's name or a head is unknown; more cells than queries; or a network without instances, cytoplasm and
        nuclei, from which nothing can be decoded.
    """
    m, t, loss, d = config.model, config.targets, config.loss, config.decode
    heads, sparse = tuple(m.heads), m.branches != "none"
    for head in heads:
        chosen(PLANES, "model.heads", head)
    if not sparse and not {"cytoplasm", "nuclei"} & set(heads):
        raise ValueError(f"config.model.heads={heads} without branches: cells are decoded from cytoplasm, or from nuclei. Add "
                         "one of these heads, or set config.model.branches to single or multi.")
    if sparse and t.max_cells > m.queries:
        raise ValueError(f"config.targets.max_cells={t.max_cells} with config.model.queries={m.queries}: each cell needs a query "
                         "of its own. Lower the first or raise the second.")
    encoder = partial(SEUNetEncoder, width=m.width, levels=m.levels, depth=m.depth, windows=tuple(m.windows),
                      pyramid_features=m.pyramid_features)
    model = SparseSEUNet(
        heads=heads, instances=_instances(m) if sparse else None, condition=m.condition or None, encoder=encoder,
        decoder=partial(SEUNetDecoder, width=m.width, depth=m.depth),
        branch_norm=chosen(BRANCH_NORMS, "model.branch_norm", m.branch_norm), dtype=compute_dtype(m.dtype))
    crowd = partial(chosen(CROWD_RULES, "targets.crowd", t.crowd), most=t.max_cells)
    targets = partial(sparse_targets, heads=heads, max_cells=t.max_cells if sparse else 0, crowd=crowd,
                      likelihood=t.overlap_map if loss.overlap != "focal" else "")
    terms = [*heads, *(("scores", "masks", "dice") if sparse else ()), *(("objectness",) if sparse and m.objectness else ())]
    objective = partial(
        sparse_objective, weights={term: loss.weights[term] for term in terms},
        matcher=chosen(MATCHERS, "loss.matcher", loss.matcher), dice_weight=loss.dice_weight,
        instance_terms=partial(instance_losses, alpha=loss.alpha, gamma=loss.gamma, iou_threshold=loss.iou_threshold,
                               objectness_error=chosen(OBJECTNESS_ERRORS, "loss.objectness_error", loss.objectness_error)),
        overlap_error=partial(chosen(OVERLAP_LOSSES, "loss.overlap", loss.overlap), alpha=loss.alpha, gamma=loss.gamma))
    decode_sparse = partial(
        decode_masks, mask_threshold=d.mask_threshold, score_threshold=d.score_threshold, rescoring=d.rescoring,
        objectness=d.objectness and m.objectness, least_pixels=d.least_pixels, duplicate_iou=d.duplicate_iou,
        duplicate_share=d.duplicate_share)
    decode_dense = partial(decode_planes, threshold=d.mask_threshold, markers=d.markers, prominence=d.prominence, radius=d.radius,
                           smoothing=d.smoothing, least_pixels=d.least_pixels)
    return System(model=model, targets=targets, loss=objective, decode=decode_sparse if sparse else decode_dense,
                  divisor=max(m.windows) * 2 ** (m.levels - 1),
                  planes=Planes(partial(plane_probabilities, names=heads), true_planes) if heads else None,
                  load=partial(load_sparse_seunet, heads=heads, windows=tuple(m.windows)))


def _instances(m: Any) -> Part:
    head = partial(InstanceHead, queries=m.queries, weights=chosen(ACTIVATIONS, "model.activation", m.activation),
                   groups=m.groups, depth=m.head_depth, objectness=m.objectness)
    return partial(InstanceDecoder, head=head, branch=partial(chosen(BRANCHES, "model.branches", m.branches), depth=m.depth),
                   instance_features=m.instance_features, mask_features=m.mask_features,
                   kernel_features=m.kernel_features or None)


def true_planes(sample: Sample, names: tuple[str, ...]) -> Maps:
    """Some of `PLANES` of an annotated sample: name -> [H, W, 1] float32, 0 or 1, or -1 where it is not known."""
    assert sample.labels is not None
    return semantic_planes(sample.labels, sample.nuclei, names)


def sparse_targets(sample: Sample, rng: np.random.Generator, *, heads: tuple[str, ...], max_cells: int, crowd: Crowd,
                   likelihood: str) -> Maps:
    """What the network shall answer for one crop.

    Args:
      sample: cropped, with labels.
      rng: of this sample.
      heads: dense heads, keys of `PLANES`.
      max_cells: M; 0 where no instances are asked for.
      crowd: (sample, rng) -> a sample with at most M cells, an entry of `CROWD_RULES`.
      likelihood: the map of `OVERLAP_MAPS` that guides the loss of the overlaps; "" for zeros.

    Returns:
      head -> [H, W, 1] float32, 0 or 1, or -1 where it is not known; "annotated" [H, W] float32; with instances "masks"
      [M, H, W] uint8, "present" [M] bool and "image", which the rule for crowds may have changed; with a head "overlap"
      "likelihood" [H, W, 1] float32.
    """
    sample = crowd(sample, rng) if max_cells else sample
    assert sample.labels is not None
    found = semantic_planes(sample.labels, sample.nuclei, heads) | {"annotated": annotated_pixels(sample.labels)}
    if "overlap" in heads:
        found["likelihood"] = (overlap_map(sample.labels, sample.nuclei, likelihood) if likelihood else
                               np.zeros_like(found["overlap"]))
    if max_cells:
        found |= instance_masks(sample.labels, max_cells) | {"image": sample.image}
    return found


def sparse_objective(outputs: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], *, weights: Mapping[str, float],
                     matcher: Callable[[jax.Array, jax.Array], jax.Array], instance_terms: Callable[..., dict[str, jax.Array]],
                     overlap_error: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], dice_weight: float = 0.8
                     ) -> dict[str, jax.Array]:
    """Losses of the matched instances, and of each dense head the mean over the annotated pixels of which its truth is known.

    Args:
      outputs: of the network.
      batch: of `sparse_targets`.
      weights: term -> factor, of every term that counts.
      matcher: an entry of `MATCHERS`.
      instance_terms: `instance_losses`, its settings bound.
      overlap_error: an entry of `OVERLAP_LOSSES`, for the head "overlap"; the others have binary cross entropy.
      dice_weight: lambda of the matching, see `pair_scores`.

    Returns:
      term -> scalar.

    Source: the thesis, equations 4.1, 4.2, 4.5, 4.10 to 4.18 and 5.1 to 5.3.
    Departs: pixels to be ignored count nowhere; the reference has none.
    """
    annotated, terms = batch["annotated"], {}
    if "masks" in outputs:
        masks, scores = (jax.lax.stop_gradient(jax.nn.sigmoid(outputs[name])) for name in ("masks", "scores"))
        target = resize_masks(batch["masks"], masks.shape[2:])
        pairs = pair_scores(dice_scores(masks * annotated[:, None], target), scores[..., None], weight=dice_weight)
        terms = instance_terms(outputs["scores"], outputs["masks"], outputs.get("objectness"), target,
                               batch["present"], annotated, matcher(pairs, batch["present"]))
    for head in (name for name in weights if name not in terms):
        error = (overlap_error(outputs[head], batch[head], batch["likelihood"]) if head == "overlap" else
                 binary_cross_entropy(outputs[head], batch[head]))
        counted = annotated * (batch[head][..., 0] >= 0)
        terms[head] = jnp.sum(error[..., 0] * counted) / jnp.maximum(jnp.sum(counted), 1.0)
    return {name: weight * terms[name] for name, weight in weights.items()}
