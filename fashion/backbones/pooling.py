"""Pooling of activations to features, as part of a Keras model."""

import keras
import numpy as np

GRID_SIZES = (3, 4)


def pool(activations: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    """Pool activations (N, height, width, channels), in float32.

    Returns:
        "avg" and "max": global average and max pooling, (N, channels). "3x3" and "4x4": average
        pooling on a grid, row by row, (N, grid cells · channels). Cells overlap if the height is
        not a multiple of the grid size; if it is smaller, there are fewer cells.
    """
    pooled = {
        "avg": keras.layers.GlobalAveragePooling2D(dtype="float32")(activations),
        "max": keras.layers.GlobalMaxPooling2D(dtype="float32")(activations),
    }
    height = activations.shape[1]
    for grid_size in GRID_SIZES:
        strides = max(height // grid_size, 1)
        cell_size = max(height - (grid_size - 1) * strides, 1)
        cells = keras.layers.AveragePooling2D(cell_size, strides, dtype="float32")(activations)
        pooled[f"{grid_size}x{grid_size}"] = keras.layers.Flatten(dtype="float32")(cells)
    return pooled


def to_float16(values: keras.KerasTensor) -> keras.KerasTensor:
    """Convert to float16, clipping values that exceed its range."""
    largest = float(np.finfo("float16").max)
    return keras.ops.cast(keras.ops.clip(values, -largest, largest), "float16")
