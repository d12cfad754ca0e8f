"""Images changed without changing what they show: in training, and to be asked twice."""

import keras


def augment(model: keras.Model) -> keras.Model:
    """The same model, trained on images flipped, shifted by up to two pixels, and erased in part.

    A quarter of them loses a rectangle, of 14 to 57 % of their height and width, to noise: random
    erasing (Zhong et al., 2017, arXiv:1708.04896, who do it to half, but for 300 epochs).
    """
    images = keras.Input((28, 28), dtype="uint8")
    flip = keras.layers.RandomFlip("horizontal", dtype="float32")
    shift = keras.layers.RandomTranslation(
        height_factor=2 / 28,
        width_factor=2 / 28,
        fill_mode="constant",
        interpolation="nearest",
        dtype="float32",
    )
    erase = keras.layers.RandomErasing(
        factor=(0.25, 0.25), scale=(0.02, 0.33), value_range=(0, 255), dtype="float32"
    )
    augmented = erase(shift(flip(keras.ops.expand_dims(keras.ops.cast(images, "float32"), -1))))
    return keras.Model(images, model(keras.ops.cast(keras.ops.squeeze(augmented, -1), "uint8")))


def mirror_images(extractor: keras.Model, suffix: str) -> keras.Model:
    """The same of the images' mirror images: uint8 (N, 28, 28) → {name + suffix: …}."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    features = extractor(keras.ops.flip(images, axis=2))
    return keras.Model(images, {f"{name}{suffix}": values for name, values in features.items()})


def with_mirror_images(model: keras.Model) -> keras.Model:
    """The mean of a model's answers to images and to their mirror images."""
    images = keras.Input((28, 28), dtype="uint8", name="images")
    answers = [model(images), model(keras.ops.flip(images, axis=2))]
    return keras.Model(images, keras.layers.average(answers), name=model.name)
