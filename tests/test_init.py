"""The effect of importing the package, in fresh processes."""

import json
import signal
import subprocess
import sys

import fashion

import pytest
from helpers.scripts import ROOT, process_environment


def start_python(directory, code, *paths, **changes):
    """Start Python with some code, a working directory, and directories first on its path."""
    path = ":".join(map(str, (*paths, ROOT)))
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=directory,
        env=process_environment(directory, PYTHONPATH=path, **changes),
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
is_started = fashion.START_TIME < __import__("time").perf_counter()
print(keras.backend.backend(), *keras_config, is_started)
"""


def test_import_is_silent_and_configures_keras(tmp_path):
    """TensorFlow's lines on stderr are suppressed; stderr works afterwards."""
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text(
        json.dumps({"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"})
    )
    plain = start_python(tmp_path, "import tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    ours = start_python(tmp_path, IMPORT, KERAS_HOME=str(tmp_path / "keras"), KERAS_BACKEND="torch")
    printed, _ = ours.communicate(), plain.wait()
    assert ours.returncode == 0
    assert printed == ("tensorflow float32 channels_last True\n", "after\n")
    if not plain.stderr.read():
        pytest.skip("needs a TensorFlow that writes lines when it is imported")


VARIABLES = """
import json
import os
import fashion
import keras
print(json.dumps(dict(os.environ)))
"""


def test_import_hides_unneeded_variables_and_expands_paths(tmp_path):
    """The values are invalid for the libraries that read them."""
    hidden = dict.fromkeys(fashion.HIDDEN_VARIABLES, "module://nonexistent")
    names = *fashion.PATH_VARIABLES, "WANDB_DIR", "WANDB_ROOT_DIR", "WANDB_CREDENTIALS_FILE"
    paths = dict.fromkeys(names, "~/some directory")
    process = start_python(tmp_path, VARIABLES, **hidden, **paths)
    out, err = process.communicate()
    assert process.returncode == 0, err
    environment = json.loads(out)
    for name in hidden:
        assert environment[name] == "module://nonexistent"
    for name in paths:
        assert environment[name] == f"{tmp_path}/some directory"
    assert not list(tmp_path.rglob("~*"))


@pytest.mark.any_version
def test_empty_variables_count_as_unset(tmp_path):
    empty = dict.fromkeys(("WANDB_MODE", "WANDB_DIR", "WANDB_TAGS", "KERAS_HOME"), "")
    process = start_python(tmp_path, VARIABLES, **empty)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert not empty.keys() & json.loads(out).keys()


NO_HOME = """
import os
import pwd
import tempfile

def fail(*args):
    raise {error}

{patched} = fail
os.environ.pop("HOME")
import fashion
import keras
print(os.path.expanduser("~"))
"""


def test_user_without_a_home_directory_gets_a_temporary_one(tmp_path):
    """A user id that is in no user database, as with `docker run --user`."""
    code = NO_HOME.format(error="KeyError", patched="pwd.getpwuid")
    out, err = start_python(tmp_path, code, TMPDIR=str(tmp_path / "temporary")).communicate()
    assert out.startswith("/") and "/home-" in out, err
    assert not (tmp_path / "~").exists()


def test_import_needs_no_temporary_directory(tmp_path):
    code = NO_HOME.format(error="FileNotFoundError", patched="tempfile.TemporaryFile")
    process = start_python(tmp_path, code)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


SETTINGS = """
import os
import sys
import fashion
import keras
import matplotlib
print(keras.config.epsilon(), matplotlib.rcParams["font.size"], sys.modules["wandb"].__name__)
print(os.environ["MATPLOTLIBRC"], os.environ.get("WANDB_SERVICE"))
"""


def test_import_ignores_settings_files_and_the_service_of_a_parent(tmp_path):
    """A matplotlibrc in UTF-16, as PowerShell writes it; NNX needs JAX."""
    (tmp_path / "rc").write_text("font.size: 99", encoding="utf-16")
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"nnx_enabled": true, "epsilon": 0.1}')
    variables = {"MATPLOTLIBRC": "rc", "WANDB_SERVICE": "3-1-unix-/nonexistent"}
    out, err = start_python(tmp_path, SETTINGS, **variables).communicate()
    assert out == "1e-07 10.0 wandb\nrc None\n", err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("keras.json", b'{"floatx": "float8"}', "Invalid `floatx`"),
        ("keras.json", b"[]", "'list' object has no attribute"),
        ("matplotlibrc", "font.size: 9".encode("utf-16"), "'utf-8' codec can't decode"),
    ],
)
def test_unusable_settings_file_is_an_error_in_one_line(name, content, reason, tmp_path):
    """Matplotlib prefers a file in the working directory to all others."""
    (tmp_path / name).write_bytes(content)
    process = start_python(tmp_path, "import fashion", KERAS_HOME=str(tmp_path))
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (1, "", 1), err
    path = tmp_path / name if name == "keras.json" else "./matplotlibrc"
    beginning = f"error: {path} cannot be used: "
    # Keras 3.10 gives no reason.
    assert err.startswith((f"{beginning}{reason}", f"{beginning}AssertionError; "))


FAILING = """
import os
level = os.environ["TF_CPP_MIN_LOG_LEVEL"].encode()
os.write(2, b"at level " + level + b", the driver is too old\\n")
raise ImportError("no such library")
"""


@pytest.mark.parametrize(("given", "level"), [({}, "3"), ({"TF_CPP_MIN_LOG_LEVEL": "1"}, "1")])
def test_failed_import_prints_suppressed_stderr(given, level, tmp_path):
    """The user's log level wins over the default."""
    (tmp_path / "tensorflow.py").write_text(FAILING)
    process = start_python(tmp_path, "import fashion", tmp_path, **given)
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


# A shell's exit code for -15 is 143.
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15)])
def test_signal_during_import_exits_quietly(signal_number, code, tmp_path):
    (tmp_path / "tensorflow.py").write_text(WAITING)
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = start_python(tmp_path, f"{start}; import fashion", tmp_path)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal_number)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == code
