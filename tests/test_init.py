"""What importing the package does to a process, seen in processes of their own."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, environment


def python(folder, code, *paths, **changes):
    """Starts Python on some code, in a folder, with these folders first on its path."""
    path = ":".join(map(str, (*paths, ROOT)))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder, PYTHONPATH=path, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


IMPORT = """
import os
import fashion
import keras
os.write(2, b"after\\n")
keras_config = keras.config.floatx(), keras.config.image_data_format()
print(keras.backend.backend(), *keras_config, fashion.START < __import__("time").perf_counter())
"""


def test_import_is_silent_and_chooses_what_keras_stands_on(tmp_path):
    """TensorFlow's own lines are held back; the stream is as before, afterwards."""
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(
        json.dumps({"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"})
    )
    plain = python(tmp_path, "import tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    ours = python(tmp_path, IMPORT, KERAS_HOME=str(tmp_path / "keras"), KERAS_BACKEND="torch")
    printed, _ = ours.communicate(), plain.wait()
    assert ours.returncode == 0
    assert printed == ("tensorflow float32 channels_last True\n", "after\n")
    if not plain.stderr.read():
        pytest.skip("needs a TensorFlow that writes lines when it is imported")


FAILING = """
import os
level = os.environ["TF_CPP_MIN_LOG_LEVEL"].encode()
os.write(2, b"at level " + level + b", the driver is too old\\n")
raise ImportError("no such library")
"""


@pytest.mark.parametrize(("given", "level"), [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "1"}, "1")])
def test_what_was_held_back_is_shown_if_the_import_fails(given, level, tmp_path):
    """And of the log level, the user's own counts."""
    (tmp_path / "tensorflow.py").write_text(FAILING)
    process = python(tmp_path, "import fashion", tmp_path, **given)
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err.count(f"at level {level}, the driver is too old\n") == 1
    assert err.index("too old") < err.index("Traceback")
    assert err.endswith("ImportError: no such library\n")


WAITING = """
import os, time
os.write(1, b"importing\\n")
time.sleep(60)
"""


# Of -15, a shell says 143.
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_signal_during_the_import_ends_it_quietly(sent, code, tmp_path):
    (tmp_path / "tensorflow.py").write_text(WAITING)
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = python(tmp_path, f"{start}; import fashion", tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(sent)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == code
