"""The one exception type that stands for a mistake the user can correct."""


class InputError(Exception):
    """A file, key or value that the user can put right.

    The message names the file, the key, the cause and the cure; the command line prints it
    as it is, without a traceback, and exits with code 2.
    """
