"""Prediction of networks that make images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pix2pix import get_config
from jaxcell.systems.pix2pix import UPSAMPLINGS, TranslationNetwork, build
from jaxcell.training.mesh import make_mesh
from jaxcell.translate import STATISTICS, make_translate


def test_norms_take_each_tile_or_the_averages_of_training():
    network, key = TranslationNetwork(levels=3, width=4), jax.random.key(1)
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1))
    variables = network.init(key, images)
    other = variables | {"batch_stats": jax.tree.map(lambda average: average + 1, variables["batch_stats"])}

    def made(statistics, variables, images):
        return np.asarray(STATISTICS[statistics](network, variables, images, key, noise=False)["planes"])

    alone = [network.apply(variables, images[index:index + 1], True, noise=False, mutable=["batch_stats"])[0]["planes"][0]
             for index in range(2)]
    np.testing.assert_allclose(made("tile", variables, images), alone, atol=1e-6)
    np.testing.assert_array_equal(made("tile", variables, images), made("tile", other, images))
    assert np.abs(made("running", variables, images) - made("running", other, images)).max() > 1e-5
    assert np.abs(made("running", variables, images) - made("tile", variables, images)).max() > 1e-5


@pytest.mark.parametrize("statistics", STATISTICS)
def test_features_are_dropped_by_a_key_and_only_where_wanted(statistics):
    network = TranslationNetwork(levels=6, width=4)
    images = jax.random.uniform(jax.random.key(0), (1, 128, 128, 1))
    variables = jax.tree.map(lambda value: 10 * value, network.init(jax.random.key(0), images))    # deep features count

    def made(seed, noise):
        return np.asarray(STATISTICS[statistics](network, variables, images, jax.random.key(seed), noise=noise)["planes"])

    np.testing.assert_array_equal(made(1, True), made(1, True))
    np.testing.assert_array_equal(made(1, False), made(2, False))
    assert min(np.abs(made(1, True) - made(2, True)).max(), np.abs(made(1, True) - made(1, False)).max()) > 0.01


def test_repeated_pixels_draw_no_grid():
    """An even image is drawn even; a transposed convolution gives even and odd pixels other values."""
    image = jnp.full((1, 64, 64, 1), 0.7)

    def steps(upsampling):
        """Differences between neighbours, away from the border, which the padding is felt from."""
        network = TranslationNetwork(levels=1, width=8, upsampling=UPSAMPLINGS[upsampling])
        variables = jax.tree.map(lambda value: 10 * value, network.init(jax.random.key(0), image))
        drawn = network.apply(variables, image)["planes"]
        assert drawn.shape == (1, 64, 64, 2)
        return float(jnp.abs(jnp.diff(drawn[:, 16:-16, 16:-16], axis=1)).max())

    assert steps("nearest") < 1e-6
    assert steps("transposed") > 1e-3


@pytest.mark.parametrize("change", [{"data.augment": "mild"}, {"data.device_augment": "light"}], ids=str)
def test_what_would_change_one_plane_of_a_pair_is_refused(change):
    config = get_config("toy")
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match="makes another pair of a pair. Use none or flips"):
        build(config)


def test_unknown_statistics_are_refused():
    config = get_config("toy")
    config.inference.statistics = "batch"
    with pytest.raises(ValueError, match="inference.statistics"):
        make_translate(build(config), make_mesh(), config)
