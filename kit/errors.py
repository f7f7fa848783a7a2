"""The one exception that means: the user's data, files or arguments are at fault, not the code."""


class InputError(ValueError):
    """A mistake in user data or arguments.

    The message says what was found, where (file, row, id), what was expected and what to do next; whoever shows it to a
    user prints the message alone, without a traceback.
    """
