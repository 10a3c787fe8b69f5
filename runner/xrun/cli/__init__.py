"""The command line: parses and prints, no logic."""


def main() -> None:
    """The `xrun` command. Ctrl-C ends it from the first moment on, as a training hears it: also in
    the background of a script, whose shell has it ignored."""
    import signal

    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .app import main

    main()
