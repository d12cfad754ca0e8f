"""The options of both scripts with their defaults."""

from fashion import options

import cnn_basic
import resnet50_fashion

SCRIPTS = [cnn_basic, resnet50_fashion]
SHARED = {
    "data_dir": None,
    "cache_dir": str(options.default_cache_dir()),
    "train_size": None,
    "validation_size": None,
    "test_size": None,
    "learning_rate": 1e-3,
    "seed": 0,
    "predict": None,
    "export": None,
    "require_accuracy": None,
    "wandb": "auto",
    "project": None,
}
DEFAULTS = {
    cnn_basic: SHARED
    | {
        "model": "cnn_basic",
        "epochs": 10,
        "batch_size": 32,
        "hidden_units": 32,
        "output_dir": "outputs/cnn_basic",
    },
    resnet50_fashion: SHARED
    | {
        "model": "resnet50_fashion",
        "epochs": 30,
        "batch_size": 512,
        "output_dir": "outputs/resnet50_fashion",
        "backbone": "resnet50",
        "weights": "imagenet",
        "image_size": None,
        "features": "conv5",
        "hidden_units": 512,
        "mirror": False,
        "recipe": "published",
        "precision": "auto",
        "dropout": 0.3,
        "patience": 10,
        "gpus": "all",
        "fine_tune_blocks": 0,
        "fine_tune_epochs": 5,
        "fine_tune_batch_size": 32,
        "fine_tune_learning_rate": 1e-4,
        "fine_tune_weight_decay": 0.0,
        "fine_tune_batch_norm": "frozen",
        "fine_tune_inputs": "cached",
        "resume": False,
    },
}
