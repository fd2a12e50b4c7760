"""The device computes what the data workers compute, each image on its own, whatever the number of devices."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcell.geometry.intensity import add_scaled, hole_boxes, raise_to, stretch, within
from jaxcell.training import device_augment as device
from jaxcell.training.mesh import make_mesh, shard_batch
from jaxcell.training.state import init_state
from jaxcell.training.step import descending, make_train_step

STEPS = [device.change_gamma, device.change_contrast, device.add_noise, device.coarse_dropout, device.shuffle_channels]


def images(count: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, 24, 32, channels), dtype=np.float32)


def test_formulas_agree_over_numpy_and_jax():
    image, noise = images(), np.random.default_rng(1).normal(size=images().shape).astype(np.float32)
    powers = np.linspace(0.5, 2, 8, dtype=np.float32)[:, None, None, None]
    for formula, arguments in ((raise_to, (powers,)), (stretch, (powers, powers / 10 - 0.1)), (add_scaled, (noise, powers / 10))):
        host, on_device = formula(image, *arguments), jax.jit(formula)(image, *arguments)
        np.testing.assert_allclose(on_device, host, atol=2e-6)
        alone = [formula(image[i], *(a[i] for a in arguments)) for i in range(8)]
        np.testing.assert_allclose(host, alone, atol=1e-6)
        assert host.dtype == np.float32 and host.min() >= 0 and host.max() <= 1
    draws = np.random.default_rng(2).random((6, 4)).astype(np.float32)
    boxes = hole_boxes(draws, (24, 32), (0.1, 0.3))
    np.testing.assert_array_equal(jax.jit(partial(hole_boxes, shape=(24, 32), sides=(0.1, 0.3)))(draws), boxes)
    painted = np.zeros((24, 32), bool)
    for y0, x0, y1, x1 in boxes:
        assert 0 <= y0 < y1 <= 24 and 0 <= x0 < x1 <= 32
        painted[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(within(boxes, (24, 32)), painted)
    np.testing.assert_array_equal(jax.jit(partial(within, shape=(24, 32)))(boxes), painted)


@pytest.mark.parametrize("step", STEPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_steps_keep_shape_type_and_range_and_differ_from_image_to_image(step, channels):
    same = np.repeat(images(1, channels), 8, axis=0)
    changed = np.asarray(jax.jit(partial(device.augment_images, steps=((1.0, step),)))(same, jax.random.PRNGKey(0)))
    assert changed.shape == same.shape and changed.dtype == np.float32 and changed.min() >= 0 and changed.max() <= 1
    if (step, channels) != (device.shuffle_channels, 1):
        assert len({image.tobytes() for image in changed}) > (1 if step is device.shuffle_channels else 7)


@pytest.mark.parametrize("step", STEPS, ids=lambda f: f.__name__)
def test_standardised_images_change_as_others_do(step):
    image, options = images(1)[0], {"fill": -2.0} if step is device.coarse_dropout else {}
    image[0, 0], image[0, 1] = 0, 1
    changed = step(5 * image - 2, jax.random.PRNGKey(1), **options)
    np.testing.assert_allclose(changed, 5 * np.asarray(step(image, jax.random.PRNGKey(1))) - 2, atol=1e-4)


def test_steps_by_hand():
    key, image = jax.random.PRNGKey(3), images(1)[0]

    def on_device(step, given, **options):
        return np.asarray(jax.jit(partial(step, **options))(given, key))

    np.testing.assert_allclose(on_device(device.change_gamma, image, limits=(2, 2)), image ** 2, atol=1e-6)
    np.testing.assert_allclose(on_device(device.change_contrast, image, contrast=(1, 1), brightness=0), image, atol=1e-6)
    noise = on_device(device.add_noise, np.full((200, 200, 1), 0.5, np.float32), deviation=(0.1, 0.1)) - 0.5
    assert abs(noise.std() - 0.1) < 2e-3 and abs(noise.mean()) < 2e-3
    gray = np.repeat(image[..., :1], 3, axis=2)
    assert np.ptp(on_device(device.add_noise, gray), axis=2).max() < 1e-6
    assert np.ptp(on_device(device.add_noise, image) - image, axis=2).max() > 0
    dropout = partial(device.coarse_dropout, holes=(1, 2), sides=(0.1, 0.1))
    hidden = jax.jit(jax.vmap(dropout))(jnp.ones((20, 64, 64, 2)), jax.random.split(key, 20))
    areas = (np.asarray(hidden) == 0).all(axis=3).sum(axis=(1, 2))
    assert areas.min() == 36 and 36 < areas.max() <= 72
    assert sorted(on_device(device.shuffle_channels, image)[0, 0]) == sorted(image[0, 0])


def test_steps_are_taken_with_their_probability_and_repeat_with_their_key():
    batch = np.zeros((2000, 1, 1, 1), np.float32)
    change = jax.jit(partial(device.augment_images, steps=((0.25, lambda image, key: image + 1),)))
    first = np.asarray(change(batch, jax.random.PRNGKey(0)))
    assert 0.21 < first.mean() < 0.29
    np.testing.assert_array_equal(change(batch, jax.random.PRNGKey(0)), first)
    assert (np.asarray(change(batch, jax.random.PRNGKey(1))) != first).any()


def test_four_devices_compute_what_one_computes():
    results = []
    for count in (1, 4):
        batch = shard_batch({"image": images()}, make_mesh(jax.devices()[:count]))
        steps = ((0.5, device.change_contrast), (0.5, device.add_noise))
        results.append(np.asarray(jax.jit(partial(device.augment_images, steps=steps))(batch["image"], jax.random.PRNGKey(7))))
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    assert (results[0] != images()).any(axis=(1, 2, 3)).sum() > 3


def test_the_train_step_augments_the_image_alone_and_leaves_the_objectives_randomness_as_it_was():
    def objective(params, carried, batch, rng):
        terms = {"image": batch["image"].mean(), "other": batch["other"].mean(), "draw": jax.random.uniform(rng)}
        return params["kernel"].sum() * terms["image"], (terms, carried)

    def metrics(augment, steps=2):
        mesh = make_mesh(jax.devices()[:4])
        state = init_state(Kernel(), optax.sgd(0.0), seed=0, image_shape=(1, 2, 2, 3))
        step, found = make_train_step(descending(objective, optax.sgd(0.0)), mesh, augment=augment), []
        for _ in range(steps):
            state, values = step(state, shard_batch({"image": images(), "other": images()}, mesh))
            found.append({key: float(values[f"loss/{key}"]) for key in ("image", "other", "draw")})
        return found

    plain = metrics(None)
    assert plain[0]["draw"] != plain[1]["draw"] and plain[0]["image"] == plain[1]["image"] == plain[0]["other"]
    augmented = metrics(partial(device.augment_images, steps=((1.0, device.change_contrast),)))
    for key in ("draw", "other"):
        assert [m[key] for m in augmented] == [m[key] for m in plain]
    assert len({m["image"] for m in (*augmented, *plain)}) == 3


class Kernel(nn.Module):
    @nn.compact
    def __call__(self, image, train):
        return {"scores": self.param("kernel", nn.initializers.ones, (3,)) * image}


def test_names():
    assert device.device_augmentation("none") is None
    with pytest.raises(ValueError, match="config.data.device_augment='wild' is unknown; it is one of none, light"):
        device.device_augmentation("wild")
    for name in device.DEVICE_POLICIES:
        augment = device.device_augmentation(name) or (lambda image, key: image)
        assert jax.eval_shape(augment, images(2), jax.random.PRNGKey(0)).shape == images(2).shape
