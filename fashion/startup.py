"""Settings that must be made before Keras is imported."""

import os
import sys
import tempfile
import time
import warnings

START_TIME = time.perf_counter()  # before the slow imports, which the user waits for

# Variables that libraries check when they are imported and that the scripts do not need. The
# MPLBACKEND of a notebook, for example, names a backend that may not be installed.
HIDDEN_VARIABLES = (
    "MPLBACKEND",
    "KERAS_MAX_EPOCHS",  # --epochs decides
    "KERAS_MAX_STEPS_PER_EPOCH",
)

os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_NNX_ENABLED": "0"}  # overrides keras.json
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # messages about drivers would hide the results
# Otherwise, scikit-learn counts cores with `lscpu`, or raises an error for a value like "auto".
os.environ["LOKY_MAX_CPU_COUNT"] = "1"
# WANDB_SERVICE points to the W&B process of the parent program, which may have ended; without it,
# W&B starts its own. Empty variables mean "not set", but W&B would reject them, and Keras would use
# the working directory.
for _name in [name for name in os.environ if name.startswith(("WANDB_", "KERAS_HOME"))]:
    if _name == "WANDB_SERVICE" or not os.environ[_name]:
        del os.environ[_name]
if any(option.startswith("error") for option in sys.warnoptions):  # such as PYTHONWARNINGS=error
    warnings.simplefilter("default")  # Keras and TensorFlow cause warnings

# Hide `HIDDEN_VARIABLES`, and suppress stderr unless an import fails: TensorFlow 2.21 writes lines
# about logging, oneDNN and CUDA to the file descriptor, which no setting silences.
_hidden = {name: os.environ.pop(name) for name in HIDDEN_VARIABLES if name in os.environ}
sys.stderr.flush()
with tempfile.TemporaryFile() as _captured:
    _stderr = os.dup(2)
    os.dup2(_captured.fileno(), 2)
    try:
        import keras
        import tensorflow as tf
        import wandb  # noqa: F401 (slow as well)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C, without a traceback through all the imports
    except BaseException:
        _captured.seek(0)
        os.write(_stderr, _captured.read())
        raise
    finally:
        os.dup2(_stderr, 2)
        os.close(_stderr)
        os.environ |= _hidden

tf.get_logger().setLevel("ERROR")  # silence the retracing warning
# Defaults that keras.json may have changed.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
IMPORTED_TIME = time.perf_counter()
