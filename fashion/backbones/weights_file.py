"""Weights files of Keras, in both of its HDF5 layouts."""

import shutil
import tempfile
import warnings
from pathlib import Path

from fashion.errors import UserError

import h5py
import keras


def load_weights(network: keras.Model, path: str) -> None:
    """Load a weights file of this network, in Keras 3's or the legacy HDF5 layout.

    Raises:
        UserError: If the file cannot be read, or does not fit; the message names the layer.
    """
    if not Path(path).is_file():
        raise UserError(f"--weights {path}: no such file")
    try:
        with h5py.File(path) as file, tempfile.TemporaryDirectory() as temporary_dir:
            # Keras determines the layout from the file name, so load a copy with a suitable name.
            is_legacy = "layer_names" in file.attrs
            copy = Path(temporary_dir) / ("legacy.h5" if is_legacy else "current.weights.h5")
            shutil.copyfile(path, copy)
            if is_legacy:
                _check_layer_names(network, file)
            with warnings.catch_warnings(action="ignore"):  # one per layer, before the error
                network.load_weights(copy)
    except OSError as error:
        raise UserError(f"--weights {path}: cannot be read: {error}") from None
    except (ValueError, KeyError) as error:
        # Keras' message names the first layer and then prints whole tensors.
        reason = str(error).split("Target variable")[0].split("List of objects")[0]
        needed = f"the weights of {network.name} with include_top=False are needed"
        raise UserError(f"--weights {path}: {' '.join(reason.split())}; {needed}") from None


def _check_layer_names(network: keras.Model, file: h5py.File) -> None:
    """Raise a `ValueError` that names a layer if network and legacy file differ in their layers.

    Keras' own message only contains the numbers of layers.
    """
    names = [n if isinstance(n, str) else n.decode() for n in file.attrs["layer_names"]]
    file_layers = [name for name in names if len(file[name].attrs["weight_names"])]
    model_layers = [layer.name for layer in network.layers if layer.weights]
    if len(model_layers) != len(file_layers):
        (name, *_) = sorted(set(model_layers) ^ set(file_layers))
        owner = "the file" if name in file_layers else network.name
        raise ValueError(f"only {owner} has a layer {name}")
