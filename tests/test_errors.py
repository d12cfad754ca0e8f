"""How a script ends: its exit code, and what it says."""

import io
import signal
import subprocess
import sys
import threading
import warnings

from fashion import errors
from fashion.errors import UsageError, UserError

import pytest
from conftest import ROOT


@pytest.fixture(autouse=True)
def own_handler_of_sigterm():
    """A script's may stay in its process until the end of that."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(monkeypatch, capsys):
    """Ends a script by an exception (or none): exit code, what went to stdout and to stderr."""

    def end_by(error):
        def main():
            if error:
                raise error

        monkeypatch.setattr(sys, "argv", ["/some/where/script.py", "--an", "option"])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            errors.run_script(main)
        return end.value.code, *capsys.readouterr()

    return end_by


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
    """As `timeout` does: the second would disturb what closes after the first."""
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGTERM)


# Loads the room without the package, whose import takes long.
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
        signal.raise_signal(signal.SIGTERM)
        print("closed")

atexit.register(print, "the interpreter's end, which TensorFlow does not always survive")
sys.argv[0] = "/some/where/script.py"
errors.run_script(main)
"""


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signal_ends_it_at_once_when_all_is_closed(sent, code, word):
    """`timeout` sends SIGTERM twice."""
    if sent == signal.SIGINT:
        program = LOAD + INTERRUPTED.replace("signal.raise_signal(signal.SIGTERM)", "pass")
    else:
        program = LOAD + INTERRUPTED
    done = subprocess.run(
        [sys.executable, "-c", program, ROOT / "fashion" / "errors.py", str(int(sent))],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stdout) == (code, "begun\nclosed\n")
    assert done.stderr == f"\nscript.py: {word}\n"


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *of: None])
def test_sigterm_stays_another_ones_where_it_was_set(handler):
    signal.signal(signal.SIGTERM, handler)
    with pytest.raises(SystemExit) as end:
        errors.run_script(terminate_twice)
    assert end.value.code == 0
    assert signal.getsignal(signal.SIGTERM) == handler


def test_outside_the_main_thread_signals_are_left_alone():
    ends = []

    def end():
        with pytest.raises(SystemExit) as error:
            errors.run_script(lambda: None)
        ends.append(error.value.code)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert ends == [0]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_any_other_exception_is_a_bug_and_shows_its_traceback():
    with pytest.raises(ZeroDivisionError):
        errors.run_script(lambda: 1 / 0)


CLOSED_PIPE = "errors.run_script(lambda: [print(i) for i in range(1_000_000)])"


def test_closed_pipe_ends_it_quietly():
    """As `--help | head -1` does."""
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
    assert process.wait(30) == 141  # as a shell says of SIGPIPE


def test_terminal_that_lacks_a_character_gets_its_number(monkeypatch):
    written = io.BytesIO()
    terminals = [io.TextIOWrapper(written, encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", terminals[0])
    monkeypatch.setattr(sys, "stderr", terminals[1])

    def main():
        print("224×224 …")
        raise UserError("no “weights”")

    with pytest.raises(SystemExit):
        errors.run_script(main)
    assert b"224\\xd7224 \\u2026\n" in written.getvalue()
    assert b"error: no \\u201cweights\\u201d\n" in written.getvalue()


AT_EXIT = """
import atexit, time
atexit.register(time.sleep, 100)
def main():
    errors.stuck.set()
    print("all of it", end="")
    raise errors.UserError("no")
errors.run_script(main)
"""


def test_library_that_is_stuck_is_not_waited_for():
    path = ROOT / "fashion" / "errors.py"
    command = [sys.executable, "-c", LOAD + AT_EXIT, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "all of it", "-c: error: no\n")
