"""The `piip` command, `python -m piip`, and `torchrun -m piip` for several processes."""

import signal

from piip.signals import handle_signals


def main() -> None:
    """Runs the command line; SIGTERM and Ctrl-C are handled before anything slow is imported."""
    handle_signals()
    from piip.cli.main import app

    try:
        app(prog_name="piip")
    finally:
        # What is left is Python's own end, which must not change the exit code of what is done.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
