"""The rooms that the two scripts stand on. Importing it prepares TensorFlow and Keras.

These are the project's only side effects of an import, and they must come before Keras is imported
by anybody else: the backend is chosen, TensorFlow's chatter is kept away, the clock starts.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator

START = time.perf_counter()  # before the slow imports: a user waits for them, too

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes on GPU drivers would bury the results


@contextlib.contextmanager
def _silent_import() -> Iterator[None]:
    """Keeps what is written to the stream of errors within the block, unless it raises.

    TensorFlow 2.21's libraries write lines on logging, oneDNN and CUDA as they are loaded, twice.
    No setting silences them, and they go to the descriptor itself, past `sys.stderr`.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(130)  # Ctrl-C, without a traceback through all that imports
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with _silent_import():
    import keras
    import tensorflow as tf

tf.get_logger().setLevel("ERROR")  # or it warns that several models' functions are compiled
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
