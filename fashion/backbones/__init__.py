"""Pretrained backbones: networks of `keras.applications`, folding, the feature cache."""
