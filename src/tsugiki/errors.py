"""The one family of exceptions that Tsugiki raises on purpose."""


class TsugikiError(Exception):
    """Something a person can put right: the message says what was wrong, where, and what to do.

    The command line prints the message as one line and exits with status 2.
    """
