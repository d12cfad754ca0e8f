"""Label-preserving transformations for training and test-time augmentation."""

import keras


def build_augmentation(max_shift: int) -> keras.Model:
    """Build random flips, shifts and erasing of uint8 (N, 28, 28) images, active in training.

    Images are flipped horizontally and shifted by up to `max_shift` pixels. In a quarter of them, a
    rectangle is replaced by noise: random erasing (Zhong et al., 2017, arXiv:1708.04896, who erase
    in half of the images, but train for 300 epochs).
    """
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        height_factor=max_shift / 28,
        width_factor=max_shift / 28,
        fill_mode="constant",
        interpolation="nearest",
        dtype="float32",
    )
    erase = keras.layers.RandomErasing(
        factor=(0.25, 0.25), scale=(0.02, 0.33), value_range=(0, 255), dtype="float32"
    )
    augmented = erase(shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1))))
    return keras.Model(images, keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8"))


def add_augmentation(model: keras.Model, max_shift: int) -> keras.Model:
    """Put the augmentation in front of a model of uint8 (N, 28, 28) images, for training."""
    augmentation = build_augmentation(max_shift)
    return keras.Model(augmentation.input, model(augmentation.output))


def flip_extractor_inputs(extractor: keras.Model, suffix: str) -> keras.Model:
    """Return an extractor of horizontally flipped images; append `suffix` to its output names."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    features = extractor(keras.ops.flip(images, axis=2))
    return keras.Model(images, {f"{name}{suffix}": values for name, values in features.items()})


def with_flip_tta(model: keras.Model) -> keras.Model:
    """Add test-time augmentation (TTA): average predictions over an image and its flip."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    predictions = [model(images), model(keras.ops.flip(images, axis=2))]
    return keras.Model(images, keras.layers.average(predictions), name=model.name)
