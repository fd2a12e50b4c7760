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

BRANCHES: Mapping[str, Part] = {"single": LastLevelBranch, "multi": EveryLevelBranch}
"""How instance and mask branch look at the decoder: at its last level, or at every one."""

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {"sigmoid": sigmoid_weights, "softmax": softmax_weights}
"""What makes weights of instance activation maps: the thesis', and the released code's."""


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
