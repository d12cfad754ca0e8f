"""Pretrained backbones: architectures, weights, folding, pooling, augmentation, feature cache."""
