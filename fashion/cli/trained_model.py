"""Loading of the model that a run left in `--output-dir`."""

import shlex

from fashion.datasets.preprocessing import IMAGE_SIZE
from fashion.errors import UserError
from fashion.options import Options
from fashion.reporting import model_io

import keras


def load_trained_model(options: Options) -> tuple[keras.Model, tuple[str, ...]]:
    """Load the model in `--output-dir` and its class names.

    Returns:
        The model, uint8 (N, 28, 28) images → (N, classes) probabilities, and the class names.

    Raises:
        UserError: If there is no model, or it cannot be loaded.
    """
    output_dir = options.results.output_dir
    path = output_dir / "model.keras"
    command = f"python {options.script_name}.py"
    if output_dir != type(options)().results.output_dir:
        command += f" --output-dir {shlex.quote(str(output_dir))}"
    if not path.exists():
        raise UserError(f"{path} does not exist; `{command}` trains a model")
    try:
        model, class_names = model_io.load_model(path)
    except Exception as error:  # zip, JSON, HDF5 and Keras each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be loaded: {reason}; if a newer Keras saved it, upgrade "
            f"Keras, else train another model with `{command}`"
        ) from None
    expected_shapes = (None, IMAGE_SIZE, IMAGE_SIZE), (None, len(class_names))
    # A Sequential model without Input has no shapes.
    shapes = tuple(getattr(model, name, None) for name in ("input_shape", "output_shape"))
    if shapes != expected_shapes:
        raise UserError(f"{path} is not a model of these scripts; `{command}` trains one")
    return model, class_names
