"""Feature pyramid over any encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from jaxcell.models.layers import Part
from jaxcell.models.resize import resize_nearest

__all__ = ["FPNDecoder"]


class FPNDecoder(nn.Module):
    """1x1 laterals, nearest top-down additions, one 3x3 convolution a level; neither norm nor activation.

    Attributes:
      features: channels of every level.

    Source: Lin et al., "Feature pyramid networks", CVPR 2017, as in torchvision: every second pixel of the coarsest level
    is one more level; kernels are initialised uniform in +-sqrt(3 / fan_in), biases zero.
    """

    conv: Part
    norm: Part
    act: Callable[[jax.Array], jax.Array]
    features: int = 256

    @nn.compact
    def __call__(self, features: Sequence[jax.Array]) -> list[jax.Array]:
        """Features of the encoder, fine to coarse -> levels of the same sizes and the further one."""
        conv = partial(self.conv, self.features, use_bias=True, bias_init=nn.initializers.zeros,
                       kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "uniform"))
        outputs: list[jax.Array] = []
        x = None
        for level in reversed(range(len(features))):
            lateral = conv(kernel=1, name=f"level{level}_lateral")(features[level])
            x = lateral if x is None else lateral + resize_nearest(x, lateral.shape[1:3])
            outputs.insert(0, conv(kernel=3, name=f"level{level}_output")(x))
        return [*outputs, outputs[-1][:, ::2, ::2]]
