"""Exit codes and messages of a script, and signals."""

import errno
import gc
import os
import signal
import subprocess
import sys

from fashion import errors
from fashion.errors import UsageError, UserError

import pytest
import tensorflow as tf
from helpers.scripts import ROOT


@pytest.fixture(autouse=True)
def restore_signals(monkeypatch):
    """Undo that a script handles signals, and that one of them arrived."""
    monkeypatch.setattr(errors, "_received_signal", 0)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in errors.SIGNALS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script in this process; return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--an", "option"])
    monkeypatch.setattr(gc, "freeze", lambda: None)

    def run_main(main):
        with pytest.raises(SystemExit) as end:
            errors.run_and_exit(main)
        return end.value.code, *capsys.readouterr()

    return run_main


def raising(error):
    """Return a script that raises an error."""

    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SystemExit(0), 0, ""),  # after --help
        (UserError("the image is empty"), 1, "script.py: error: the image is empty\n"),
        (UsageError("--epochs: no"), 2, "script.py: error: --epochs: no\n"),
        (KeyboardInterrupt(), 130, "\nscript.py: interrupted\n"),
        (FileNotFoundError(2, "Not found", "x"), 1, "script.py: error: [Errno 2] Not found: 'x'\n"),
        (OSError("two\n lines"), 1, "script.py: error: two lines\n"),
        (TimeoutError(), 1, "script.py: error: TimeoutError\n"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_exit_code_and_message(error, code, message, run):
    assert run(raising(error)) == (code, "", message)
    assert run(lambda: None) == (0, "", "")


def test_advice_depends_on_the_cause():
    for number in errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EIO:
        text = errors.describe(OSError(number, os.strerror(number)))
        assert text.startswith(f"[Errno {number}] {os.strerror(number)}")
        assert ("free disk space" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
        assert ("ulimit -f" in text) == (number == errno.EFBIG)
        assert ("permissions" in text) == (number == errno.EACCES)


FULL_GPU = "Failed copying input tensor from CPU:0 to GPU:0: Dst tensor is not initialized."


@pytest.mark.parametrize(
    ("lap", "main", "advice"),
    [
        ("", raising(MemoryError()), ""),  # --predict and --export
        ("extraction", raising(MemoryError()), " during extraction; try a smaller --image-size"),
        pytest.param(
            "training",
            lambda: tf.zeros([10**14]),  # 400 TB; TensorFlow tries for 10 s
            " during training; try a smaller --batch-size",
            marks=pytest.mark.slow,
        ),
        (
            "fine_tuning",
            raising(tf.errors.InternalError(None, None, FULL_GPU)),
            " during fine-tuning; try a smaller --fine-tune-batch-size, then continue with "
            "--resume",
        ),
    ],
)
def test_out_of_memory_names_the_lap_and_the_option(lap, main, advice, run, monkeypatch):
    monkeypatch.setattr(errors, "current_lap", lap)
    assert run(main) == (1, "", f"script.py: error: out of memory{advice}\n")


def test_bugs_propagate(run):
    for error in ZeroDivisionError(), tf.errors.InternalError(None, None, "something"):
        with pytest.raises(type(error)):
            errors.run_and_exit(raising(error))


@pytest.mark.parametrize("wrapper", [None, OSError, UserError, ValueError])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
        (signal.SIGUSR1, 138, "terminated"),
        (signal.SIGUSR2, 140, "terminated"),  # of SGE and LSF
        (signal.SIGXCPU, 152, "terminated"),
    ],
)
def test_signal_cleans_up_once_and_sets_the_exit_code(number, code, word, wrapper, run):
    """A library may turn the exception of the signal handler into an error of its own."""

    def main():
        try:
            signal.raise_signal(number)
        except SystemExit as error:
            signal.raise_signal(number)  # `timeout` sends it twice
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(number)
            if wrapper:
                raise wrapper("wrapped") from error
            raise
        finally:
            print("closed")

    cleaned = []
    assert run(main) == (code, "closed\n", f"\nscript.py: {word}\n")
    assert cleaned == ([] if number == signal.SIGINT else [number])


def test_loops_notice_a_signal_whose_exception_was_swallowed(run, monkeypatch):
    class Swallowing:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def main():
        errors.raise_if_terminated()  # there was no signal yet
        Swallowing()
        print("next step")
        errors.raise_if_terminated()
        print("not reached")

    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    assert run(main) == (143, "next step\n", "\nscript.py: terminated\n")
    assert len(swallowed) == 1


def test_existing_signal_handlers_stay(run):
    """`nohup` ignores SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run(lambda: signal.raise_signal(signal.SIGHUP)) == (0, "", "")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# Load the module without the package and TensorFlow, whose imports are slow.
LOAD = """
import runpy, sys
sys.modules["tensorflow"] = sys
def main():
    print("first", flush=True)
    sys.stdin.read()
    print("second")
    exec(sys.argv[2])
runpy.run_path(sys.argv[1])["run_and_exit"](main)
"""


def start(*flags, end, stderr=subprocess.PIPE):
    """Start a process that prints "first", waits, and prints "second"."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    command = [sys.executable, *flags, "-c", LOAD, ROOT / "fashion" / "errors.py", end]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert process.stdout.readline() == "first\n"
    return process


@pytest.mark.parametrize("end", ["print(1_000_000 * 'x')", "", "sys.exit(0)"])
@pytest.mark.parametrize("stderr", [subprocess.PIPE, subprocess.STDOUT])
def test_closed_pipe_is_quiet(end, stderr):
    """The reader of the output ends early, as in `--help | head -1`."""
    process = start(end=end, stderr=stderr)
    process.stdout.close()
    process.stdin.close()
    assert stderr == subprocess.STDOUT or process.stderr.read() == ""
    assert process.wait(30) == 141  # a shell's exit code for SIGPIPE


def test_development_mode_shows_the_traceback_of_all_errors():
    assert start("-X", "dev", end="sys.exit(0)").communicate(timeout=60) == ("second\n", "")
    out, err = start("-X", "dev", end="open('nowhere')").communicate(timeout=60)
    assert out == "second\n" and "Traceback" in err
    assert err.splitlines()[-1].startswith("-c: error: [Errno 2] ")
