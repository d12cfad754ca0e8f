"""Library code behind the two scripts. Importing it configures TensorFlow and Keras.

The settings must be made before anything else imports Keras: they select the Keras backend, silence
TensorFlow's logging and start the run timer. They are the project's only side effects of an import.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator

START_TIME = time.perf_counter()  # before the slow imports, which the user waits for

os.environ["KERAS_BACKEND"] = "tensorflow"  # overrides keras.json
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # messages on GPU drivers would hide the results


@contextlib.contextmanager
def _suppress_stderr() -> Iterator[None]:
    """Suppress stderr inside the block; replay it if the block raises.

    TensorFlow 2.21's libraries write lines on logging, oneDNN and CUDA when they are loaded, twice.
    No setting silences them, and they bypass `sys.stderr` by writing to the file descriptor.
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


with _suppress_stderr():
    import keras
    import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # silence the retracing warning
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
