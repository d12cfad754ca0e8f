"""The effect of importing the package, in fresh processes."""

import json
import signal
import subprocess
import sys

from fashion import startup

import pytest
from helpers.scripts import ROOT, process_environment


def start_python(directory, code, *paths, flags=(), **changes):
    """Start Python with some code, a working directory, and directories first on its path."""
    path = ":".join(map(str, (*paths, ROOT)))
    environment = process_environment(directory, PYTHONPATH=path, **changes)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.Popen(command, cwd=directory, env=environment, **pipes)


IMPORT = """
import faulthandler, json, os
import fashion
import keras
os.write(2, b"after\\n")
assert fashion.startup.START_TIME < fashion.startup.IMPORTED_TIME
print(keras.backend.backend(), faulthandler.is_enabled())
print(keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon())
print(json.dumps(dict(os.environ)))
"""
KERAS_JSON = """
{"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first",
 "nnx_enabled": true}
"""


def test_import_is_silent_and_configures_keras(tmp_path):
    """The lines of TensorFlow on stderr are suppressed; stderr works afterwards.

    The hidden variables have values that are invalid for the libraries that read them.
    """
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text(KERAS_JSON)
    kept = dict.fromkeys(startup.HIDDEN_VARIABLES, "module://nonexistent")
    kept |= {"MPLBACKEND": "inline"}  # of a notebook
    kept |= {"WANDB_PROJECT": "mine", "PYTHONFAULTHANDLER": "1"}
    dropped = dict.fromkeys(("WANDB_MODE", "WANDB_DIR", "WANDB_TAGS", "KERAS_HOME"), "")
    dropped["WANDB_SERVICE"] = "3-1-unix-/nonexistent"  # of a parent process that has ended
    process = start_python(tmp_path, IMPORT, **kept, **dropped, KERAS_BACKEND="torch")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "after\n")
    *settings, variables = out.splitlines()
    assert settings == ["tensorflow True", "float32 channels_last 1e-07"]
    assert json.loads(variables).items() >= kept.items()
    assert not dropped.keys() & json.loads(variables).keys()


@pytest.mark.slow
def test_import_is_silent_in_development_mode_and_without_a_home(tmp_path):
    flags = ("-X", "dev", "-W", "error", "-bb")
    process = start_python(tmp_path, "import fashion", flags=flags, HOME="/proc/nonexistent")
    assert process.communicate() == ("", "")
    assert process.returncode == 0


FAILING = """
import os
level = os.environ["TF_CPP_MIN_LOG_LEVEL"].encode()
os.write(2, b"at level " + level + b", the driver is too old\\n")
raise ImportError("no such library")
"""


@pytest.mark.parametrize(("given", "level"), [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "1"}, "1")])
def test_failed_import_prints_suppressed_stderr(given, level, tmp_path):
    """The user's log level wins over the default."""
    (tmp_path / "keras.py").write_text(FAILING)
    process = start_python(tmp_path, "import fashion", tmp_path, **given)
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert err.count(f"at level {level}, the driver is too old\n") == 1
    assert err.index("too old") < err.index("Traceback")
    assert err.endswith("ImportError: no such library\n")


# A shell's exit code for -15 is 143.
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_signal_during_import_exits_quietly(signal_number, code, tmp_path):
    (tmp_path / "keras.py").write_text("import os, time; os.write(1, b'now\\n'); time.sleep(60)")
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = start_python(tmp_path, f"{start}; import fashion", tmp_path)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal_number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == code
