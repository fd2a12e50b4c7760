"""The focal losses that a map guides pull where they should, and a map of the wrong shape is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxcell.losses.overlaps import OVERLAP_LOSSES
from jaxcell.losses.pixels import binary_focal

LOGITS, TARGET = np.float32([-1, -1, 2, 2]), np.float32([1, 0, 1, 0])


def test_the_map_changes_what_it_should():
    plain = binary_focal(LOGITS, TARGET)
    nowhere, everywhere = np.zeros(4, np.float32), np.ones(4, np.float32)
    np.testing.assert_allclose(OVERLAP_LOSSES["focal"](LOGITS, TARGET, everywhere), plain)
    np.testing.assert_allclose(OVERLAP_LOSSES["reweighted"](LOGITS, TARGET, nowhere), plain)
    np.testing.assert_allclose(OVERLAP_LOSSES["reweighted"](LOGITS, TARGET, everywhere), binary_focal(LOGITS, 0 * TARGET))
    np.testing.assert_allclose(OVERLAP_LOSSES["guided"](LOGITS, TARGET, nowhere), plain)
    np.testing.assert_allclose(OVERLAP_LOSSES["guided"](LOGITS, TARGET, everywhere), plain * TARGET)    # overlaps stay asked for
    np.testing.assert_allclose(OVERLAP_LOSSES["pixel_weighted"](LOGITS, TARGET, nowhere), 0)
    np.testing.assert_allclose(OVERLAP_LOSSES["pixel_weighted"](LOGITS, TARGET, everywhere), plain)


def test_reweighting_moves_the_best_prediction_of_a_likely_overlap_down():
    pull = jax.grad(lambda x, p: OVERLAP_LOSSES["reweighted"](x, np.float32(1), p))
    assert pull(np.float32(0), np.float32(0.1)) < pull(np.float32(0), np.float32(0.9))


@pytest.mark.parametrize("loss", OVERLAP_LOSSES.values(), ids=OVERLAP_LOSSES)
def test_shapes_must_agree(loss):
    with pytest.raises(AssertionError):
        loss(LOGITS, TARGET, np.zeros((4, 1), np.float32))
