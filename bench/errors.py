"""The root of the errors that are for the reader: what was given, what is allowed, how to mend it."""


class BenchError(Exception):
    """An error that the command line prints without a traceback, exiting with `status`."""

    status = 1


class StoppedError(BenchError):
    """Work that was asked to stop, and saved what it needs to go on."""
