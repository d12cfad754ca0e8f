"""Pretrained backbones: architectures, weights, folding, pooling and the feature cache."""
