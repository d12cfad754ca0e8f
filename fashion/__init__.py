"""Library code behind the two scripts. Importing it configures TensorFlow and Keras.

The settings must be made before anything else imports Keras: its backend, TensorFlow's logging,
paths with "~", closed standard streams. With the start of the run's timer, they are the project's
only side effects of an import.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator

for _fd, _name in enumerate(("stdin", "stdout", "stderr")):
    # The next file that is opened would get the file descriptor of a closed stream.
    if getattr(sys, _name) is None:
        os.open(os.devnull, os.O_RDWR)
        setattr(sys, _name, open(_fd, "w" if _fd else "r"))  # noqa: SIM115

START_TIME = time.perf_counter()  # before the slow imports, which the user waits for

# Variables that libraries check when they are imported and that the scripts do not need. The
# MPLBACKEND of a notebook, for example, names a backend that may not be installed.
HIDDEN_VARIABLES = (
    "MPLBACKEND",
    "KERAS_MAX_EPOCHS",  # --epochs decides
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERAS_NNX_ENABLED",  # for JAX
    "NUMPY_EXPERIMENTAL_ARRAY_FUNCTION",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
    "TF2_BEHAVIOR",  # Keras 3 needs TensorFlow 2's
)
# Paths whose "~" not every library expands; a directory of that name would be created instead.
PATH_VARIABLES = (
    *("KERAS_HOME", "MATPLOTLIBRC", "MPLCONFIGDIR", "NETRC", "TMPDIR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"),
    *("WANDB_CREDENTIALS_FILE", "WANDB_IDENTITY_TOKEN_FILE"),
)
for _name in PATH_VARIABLES:
    if os.environ.get(_name, "").startswith("~"):
        os.environ[_name] = os.path.expanduser(os.environ[_name])
if os.environ.get("KERAS_HOME") == "":
    del os.environ["KERAS_HOME"]  # Keras would use the working directory

os.environ["KERAS_BACKEND"] = "tensorflow"  # overrides keras.json
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # messages about GPU drivers would hide the results


@contextlib.contextmanager
def _hide_variables() -> Iterator[None]:
    """Remove `HIDDEN_VARIABLES` from the environment inside the block."""
    hidden = {name: os.environ.pop(name) for name in HIDDEN_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden


@contextlib.contextmanager
def _suppress_stderr() -> Iterator[None]:
    """Suppress stderr inside the block; replay it if the block raises.

    TensorFlow 2.21's libraries write lines about logging, oneDNN and CUDA when they are loaded,
    twice. No setting silences them, and they bypass `sys.stderr` by writing to the file descriptor.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(130)  # Ctrl-C, without a traceback through all the imports
        except BaseException:
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with _suppress_stderr(), _hide_variables():
    import keras
    import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # silence the retracing warning
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
