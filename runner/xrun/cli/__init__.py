"""The command line: parses and prints, no logic."""


def main() -> None:
    """The `xrun` command; Ctrl-C while it is being imported ends it as every other command."""
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .app import main

    main()
