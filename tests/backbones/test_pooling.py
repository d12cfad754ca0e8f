"""Pooling of activations, compared with NumPy."""

from fashion.backbones.pooling import pool, to_float16

import keras
import numpy as np
import pytest


def test_pool_computes_averages_and_maxima():
    values = np.random.default_rng(0).normal(size=(5, 4, 4, 6)).astype("float32")
    pooled = pool(keras.ops.convert_to_tensor(values))
    assert pooled.keys() == {"avg", "max", "3x3", "4x4"}
    np.testing.assert_allclose(pooled["avg"], values.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled["max"], values.max(axis=(1, 2)))


@pytest.mark.parametrize("grid_size", [3, 4])
@pytest.mark.parametrize("side", [4, 7, 14, 28])
def test_pool_averages_over_the_cells_of_a_grid(side, grid_size):
    """Row by row; the cells cover all positions, and overlap if they must."""
    values = np.random.default_rng(0).normal(size=(5, side, side, 6)).astype("float32")
    pooled = pool(keras.ops.convert_to_tensor(values))[f"{grid_size}x{grid_size}"]
    step = side // grid_size
    cells = [slice(i * step, i * step + side - (grid_size - 1) * step) for i in range(grid_size)]
    assert set().union(*(range(side)[cell] for cell in cells)) == set(range(side))
    expected = [values[:, y, x].mean(axis=(1, 2)) for y in cells for x in cells]
    assert pooled.shape[1] == grid_size * grid_size * 6
    np.testing.assert_allclose(pooled, np.hstack(expected), rtol=1e-5, atol=1e-6)


def test_to_float16_clips_to_the_range():
    values = keras.ops.convert_to_tensor([1e6, -1e6, 65504, 0.1, 1e-9])
    converted = keras.ops.convert_to_numpy(to_float16(values))
    assert converted.dtype == np.float16
    assert converted.tolist() == [65504, -65504, 65504, np.float16(0.1), 0]
