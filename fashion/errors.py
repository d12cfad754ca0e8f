"""What the user can put right, and how a script ends."""

import contextlib
import gc
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Set once a library waits for what may never come, as it would at the interpreter's end, too.
stuck = threading.Event()


class UserError(Exception):
    """What the user can put right: the message says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError):
    """A value on the command line that cannot be used."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends some time before it kills: all is closed as for Ctrl-C."""


def _terminate(*of: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends it twice
    raise Terminated


def end(code: int, at_once: bool = False) -> NoReturn:
    """Ends the process; at once, without the interpreter's own end, if asked or `stuck`."""
    if not at_once and not stuck.is_set():
        gc.freeze()  # or, for a second, it would look through all that TensorFlow and Keras made
        sys.exit(code)
    for stream in sys.stdout, sys.stderr:
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and ends the process: exit code 0; 1 or 2 for an error; 130 for Ctrl-C.

    143 for SIGTERM, and 141 (a shell's for SIGPIPE) where nobody reads the output any more, as
    after `| head`.
    """
    script = Path(sys.argv[0]).name
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no "…" or "×"
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
        end(0)
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        end(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's end would try again
        end(141)
    except KeyboardInterrupt as error:
        warnings.simplefilter("ignore")  # asyncio's, on what was not awaited within wandb
        terminated = isinstance(error, Terminated)
        print(f"\n{script}: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        # A thread of TensorFlow's may be in the midst of an epoch, and the interpreter's end crash.
        end(143 if terminated else 130, at_once=True)
