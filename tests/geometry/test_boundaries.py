"""Distances inside a mask, which several targets measure."""

import numpy as np
from scipy import ndimage

from jaxcell.geometry.boundaries import distances_inside


def test_distances_are_exact_and_end_at_the_images_edge_only_where_all_is_inside():
    inside = np.random.default_rng(0).random((60, 80)) > 0.02
    np.testing.assert_array_equal(distances_inside(inside), ndimage.distance_transform_edt(inside).astype(np.float32))
    assert distances_inside(np.ones((5, 7), bool))[2].tolist() == [1, 2, 3, 3, 3, 2, 1]
