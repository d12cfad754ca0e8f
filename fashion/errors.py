"""What the user can put right, and how a script ends."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """What the user can put right: the message says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError):
    """A value on the command line that cannot be used."""

    exit_code = 2


def run_script(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and ends the process: exit code 0; 1 or 2 for an error; 130 for Ctrl-C.

    141 (as a shell says of SIGPIPE) where nobody reads the output any more, as after `| head`.
    """
    script = Path(sys.argv[0]).name
    for stream in sys.stdout, sys.stderr:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no "…" or "×"
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
        sys.exit(0)
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's end would try again
        sys.exit(141)
    except KeyboardInterrupt:
        warnings.simplefilter("ignore")  # asyncio's, on what was not awaited within wandb
        print(f"\n{script}: interrupted", file=sys.stderr)
        sys.exit(130)
