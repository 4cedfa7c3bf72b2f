"""Command-line behavior: one-line errors, exit codes and tables."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path


class UserError(Exception):
    """A problem that the user can solve; the one-line message says what is wrong and what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def run_script(main: Callable[[list[str]], None]) -> None:
    """Call main(argv) and exit: with code 2 and one line on a UserError, 130 on Ctrl-C, 141 on a closed pipe."""
    warnings.filterwarnings("ignore", module="PIL")  # about unusual images, which load anyway
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that its encoding lacks
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's final flush does not fail
        sys.exit(141)
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
