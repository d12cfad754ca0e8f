"""Exit codes and messages of a script."""

import io
import signal
import subprocess
import sys
import threading
import warnings

from fashion import errors
from fashion.errors import UsageError, UserError

import pytest
from helpers.scripts import ROOT


@pytest.fixture(autouse=True)
def restore_sigterm_handler():
    """Restore the signal handler that a script replaces."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script that raises an exception, if any; return exit code, stdout and stderr."""

    def run_raising(error):
        def main():
            if error:
                raise error

        monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--an", "option"])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            errors.run_and_exit(main)
        return end.value.code, *capsys.readouterr()

    return run_raising


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (UserError("the disk is full"), 1, "script.py: error: the disk is full\n"),
        (UsageError("--epochs: no"), 2, "script.py: error: --epochs: no\n"),
        (KeyboardInterrupt(), 130, "\nscript.py: interrupted\n"),
    ],
)
def test_exit_code_and_message(error, code, message, run):
    assert run(error) == (code, "", message)


def terminate_twice():
    """Send SIGTERM twice, as `timeout` does; the second would disturb the cleanup."""
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)


# Load the module without the package, whose import is slow.
LOAD = """
import atexit, importlib.util, signal, sys, time
spec = importlib.util.spec_from_file_location("errors", sys.argv[1])
errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(errors)
"""
INTERRUPTED = """
def main():
    print("begun")
    try:
        signal.raise_signal(int(sys.argv[2]))
        time.sleep(60)
    finally:
        signal.raise_signal(int(sys.argv[2]))
        print("closed")

atexit.register(print, "interpreter shutdown, which may crash in TensorFlow")
sys.argv[0] = "/some/where/script.py"
errors.run_and_exit(main)
"""


def restore_signals():
    """Undo that a shell ignores SIGINT in the background, and `nohup` SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("signal_number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_run_and_exit_after_signal_cleans_up_and_skips_shutdown(signal_number, code, word):
    """`timeout` sends SIGTERM twice."""
    if signal_number == signal.SIGINT:
        program = LOAD + INTERRUPTED.replace(
            "finally:\n        signal.raise_signal(int(sys.argv[2]))", "finally:"
        )
    else:
        program = LOAD + INTERRUPTED
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT / "fashion" / "errors.py", str(int(signal_number))],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=restore_signals,
    )
    assert (done.returncode, done.stdout) == (code, "begun\nclosed\n")
    assert done.stderr == f"\nscript.py: {word}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *args: None])
def test_run_and_exit_keeps_an_existing_handler(handler, number):
    """`nohup` ignores SIGHUP."""
    before = signal.signal(number, handler)
    with pytest.raises(SystemExit) as end:
        errors.run_and_exit(lambda: signal.raise_signal(number))
    assert end.value.code == 0
    assert signal.signal(number, before) == handler


def test_run_and_exit_outside_main_thread_leaves_signals():
    ends = []

    def end():
        with pytest.raises(SystemExit) as error:
            errors.run_and_exit(lambda: None)
        ends.append(error.value.code)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert ends == [0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_run_and_exit_propagates_other_exceptions():
    with pytest.raises(ZeroDivisionError):
        errors.run_and_exit(lambda: 1 / 0)


CLOSED_PIPE = "errors.run_and_exit(lambda: [print(i) for i in range(1_000_000)])"


def test_run_and_exit_with_closed_pipe_is_quiet():
    """The reader of the output ends early, as in `--help | head -1`."""
    path = ROOT / "fashion" / "errors.py"
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD + CLOSED_PIPE, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 141  # a shell's exit code for SIGPIPE


def test_run_and_exit_escapes_characters_the_terminal_lacks(monkeypatch):
    written = io.BytesIO()
    terminals = [io.TextIOWrapper(written, encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", terminals[0])
    monkeypatch.setattr(sys, "stderr", terminals[1])

    def main():
        print("224×224 …")
        raise UserError("no “weights”")

    with pytest.raises(SystemExit):
        errors.run_and_exit(main)
    assert b"224\\xd7224 \\u2026\n" in written.getvalue()
    assert b"error: no \\u201cweights\\u201d\n" in written.getvalue()


AT_EXIT = """
import atexit, time
atexit.register(time.sleep, 100)
def main():
    errors.skip_interpreter_shutdown.set()
    print("complete output", end="")
    raise errors.UserError("no")
errors.run_and_exit(main)
"""


def test_exit_process_skips_shutdown_if_a_thread_hangs():
    path = ROOT / "fashion" / "errors.py"
    command = [sys.executable, "-c", LOAD + AT_EXIT, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "complete output", "-c: error: no\n")
