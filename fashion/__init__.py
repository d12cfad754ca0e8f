"""Library code behind the two scripts. Importing it configures TensorFlow and Keras.

The settings must be made before anything else imports Keras: its backend, TensorFlow's logging,
paths with "~", closed standard streams. These settings and the start of the run's timer are the
only side effects of importing the project.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import time
import traceback
import warnings
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
    "MATPLOTLIBRC",
    "NUMPY_EXPERIMENTAL_ARRAY_FUNCTION",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
    "TF2_BEHAVIOR",  # Keras 3 needs TensorFlow 2's
)
# Set only during the import, so that the user's settings files have no effect.
IMPORT_VARIABLES = {"KERAS_NNX_ENABLED": "false", "MATPLOTLIBRC": os.devnull}
# Paths whose "~" not every library expands, besides WANDB_…; a directory of that name would be
# created instead.
PATH_VARIABLES = (
    *("KERAS_HOME", "MPLCONFIGDIR", "NETRC", "TMPDIR"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
)
if os.path.expanduser("~") == "~":  # a user without home directory, as in some containers
    with contextlib.suppress(OSError):  # there may be no temporary directory either
        os.environ["HOME"] = os.path.join(tempfile.gettempdir(), f"home-{os.getuid()}")
for _name, _value in list(os.environ.items()):
    _is_wandb = _name.startswith("WANDB_")
    if _value.startswith("~") and (_is_wandb or _name in PATH_VARIABLES):
        os.environ[_name] = os.path.expanduser(_value)
    # An empty variable means that it is not set. W&B would reject it, and Keras use the working
    # directory.
    if not _value and (_is_wandb or _name == "KERAS_HOME"):
        del os.environ[_name]
# It names the W&B process of the program that started this one, which may have ended. Without it,
# W&B starts a process of its own.
os.environ.pop("WANDB_SERVICE", None)
if any(option.startswith("error") for option in sys.warnoptions):  # such as PYTHONWARNINGS=error
    warnings.simplefilter("default")  # Keras and TensorFlow cause warnings

os.environ["KERAS_BACKEND"] = "tensorflow"  # overrides keras.json
# Messages about GPU drivers would hide the results.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Otherwise, scikit-learn counts the cores, and prints a traceback where there is no `lscpu`.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")


@contextlib.contextmanager
def _hide_variables() -> Iterator[None]:
    """Remove `HIDDEN_VARIABLES` from the environment, and set `IMPORT_VARIABLES`, in the block."""
    hidden = {name: os.environ.pop(name) for name in HIDDEN_VARIABLES if name in os.environ}
    os.environ |= IMPORT_VARIABLES
    try:
        yield
    finally:
        for name in IMPORT_VARIABLES:
            del os.environ[name]
        os.environ |= hidden


def _settings_file(error: BaseException) -> str | None:
    """Return the settings file whose reading raised an error, or None if there is another cause."""
    keras_json = os.path.join(os.environ.get("KERAS_HOME", "~/.keras"), "keras.json")
    paths = {"keras.src.backend.config": keras_json, "matplotlib": "./matplotlibrc"}
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__") for frame, _ in frames][-2:]  # may end in `codecs`
    return next((path for module, path in paths.items() if module in modules), None)


@contextlib.contextmanager
def _suppress_stderr() -> Iterator[None]:
    """Suppress stderr inside the block; replay it if the block raises.

    TensorFlow 2.21's libraries write lines about logging, oneDNN and CUDA when they are loaded,
    twice. No setting silences them, and they bypass `sys.stderr` by writing to the file descriptor.
    """
    sys.stderr.flush()
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # no writable temporary directory; what is written is lost
        file = open(os.devnull, "w+b")  # noqa: SIM115
    with file as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        # If a library aborts, as on a processor that is too old, say at least where.
        faulthandler.enable(stderr)
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(130)  # Ctrl-C, without a traceback through all the imports
        except BaseException as error:
            if path := _settings_file(error):
                reason = str(error) or type(error).__name__  # Keras 3.10 asserts
                sys.exit(f"error: {path} cannot be used: {reason}; correct or delete it")
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            faulthandler.disable()
            os.dup2(stderr, 2)
            os.close(stderr)


with _suppress_stderr(), _hide_variables():
    import keras
    import tensorflow as tf
    import wandb  # noqa: F401 (here because it is slow as well, and Ctrl-C is handled)

tf.get_logger().setLevel("ERROR")  # silence the retracing warning
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
