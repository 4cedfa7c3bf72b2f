"""Command-line behavior: one-line errors, exit codes and tables."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A problem that the user can solve; the one-line message says what is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Output:
    """Standard output or error, which may be closed or full: then the work goes on, and `error` says why."""

    def __init__(self, stream: Any):
        self.error = None if stream else "it is closed"
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115, stays open as long as the process runs
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that its encoding lacks

    def write(self, text: str) -> None:
        self.attempt(self.stream.write, text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, action: Callable, *args: str) -> None:
        """Write or flush; if that fails, drop what is not written yet, and what will be, also as Python ends."""
        try:
            action(*args)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if isinstance(error, BrokenPipeError):  # the reader of our output, such as head, has ended
                sys.exit(141)
            self.error = str(error.strerror)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run_script(main: Callable[[list[str]], None]) -> None:
    """Call main(argv) and exit: with code 2 and one line on a UserError, 130 on Ctrl-C, 141 on a closed pipe."""
    warnings.filterwarnings("ignore", module="PIL")  # about unusual images, which load anyway
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    os.environ.pop("MPLBACKEND", None)  # pictures are written to files; a notebook's backend may not be importable here
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    script = Path(sys.argv[0]).name
    output, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    sys.stdout = output
    try:
        try:
            main(sys.argv[1:])
        except SystemExit as end:  # of --help
            if end.code:
                raise
        output.flush()
        if output.error:
            raise UserError(f"the work is done, but its output could not be written ({output.error})")
    except (UserError, MemoryError, RuntimeError) as error:
        line, code = str(error), 2
        if isinstance(error, RuntimeError) and "out of memory" not in line and "can't allocate memory" not in line:
            if "RANK" not in os.environ or not any(name in line for name in ("gloo", "NCCL", "Connection closed")):
                raise
            line, code = "another process ended or stopped responding, so this one ends", 1
        elif not isinstance(error, UserError):
            line = "out of memory; use fewer or smaller images, fewer filters or a smaller --batch-size"
        process = f" (process {os.environ['RANK']})" if os.environ.get("RANK", "0") != "0" else ""
        print(f"{script}{process}: {line}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt as stop:
        print(f"\n{script}: {str(stop) or 'stopped by Ctrl-C'}", file=sys.stderr)
        sys.exit(130)


def print_table(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    """Print a table with aligned columns, which is valid Markdown."""
    lines = [list(map(str, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for number, row in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)
