"""Embeddings of saved models, computed layer by layer."""

import keras
import numpy as np


def compute_embeddings(model, images):
    """Compute the input of the last layer of a saved model of either script, float32 (N, dim)."""
    if model.name == "resnet50_fashion":
        head = model.get_layer("head")
        *body, _ = head.get_layer("classifier").layers
        before = model.layers[model.layers.index(head) - 1]
        values = keras.Model(model.input, before.output).predict(images, verbose=0)
        values = head.get_layer("standardizer")(values)
    else:
        *body, _ = model.layers
        values = images
    for layer in body:
        values = layer(values)
    return np.asarray(values, "float32")
