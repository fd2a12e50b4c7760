"""The choice of arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxcell.models.precision import compute_dtype


@pytest.mark.parametrize("backend, dtype", [("cpu", jnp.float32), ("gpu", jnp.bfloat16), ("tpu", jnp.bfloat16),
                                            ("METAL", jnp.float32)])
def test_auto_follows_the_backend(backend, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compute_dtype("auto") is dtype
    assert compute_dtype("float32") is jnp.float32


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'half' is unknown; known are auto, float32, bfloat16"):
        compute_dtype("half")
