"""`liverseg`: the command line. Each verb lives in flows/commands by its idea; errors end here."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import typer

from flows.commands import data, health, models, predict, report, retrain, seen, stages
from flows.console import plain, show_anyhow
from liverseg_core.errors import ExitCode, Interrupted, LiversegError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From liver CTs to a registered segmentation model. Research software, not a medical device.",
    epilog="--debug with any command shows the traceback of an error.",
)
for group in (data, stages, retrain, predict, seen, models, report, health):
    group.add_to(app)


def main() -> NoReturn:
    """Run the command line; every error a user can meet ends as one line and its class's exit code."""
    show_anyhow()
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    else:  # Prefect prints the traceback of whatever ends a flow; the one line below says it better
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        app(standalone_mode=True)
    except LiversegError as error:
        _end(str(error), error.exit_code, debug)
    except _Stopped as stopped:
        interrupted = Interrupted(stopped.number, "stopped by a signal")
        _end(str(interrupted), interrupted.exit_code, debug)
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.DONE)
    except Exception as error:  # the last line of defence: a bug shows no traceback unless asked
        _end(f"LS101: unexpected {type(error).__name__}: {error}. Run again with --debug for more.", 1, debug)
    sys.exit(ExitCode.DONE)


def _end(line: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    print(plain(line), file=sys.stderr)
    sys.exit(int(code))


class _Stopped(BaseException):
    """A signal came. No KeyboardInterrupt, which typer would end without a word, and no Exception, which any
    library may take for a failure of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Stopped(number)


if __name__ == "__main__":
    main()
