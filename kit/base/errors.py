"""The two exceptions that are no defects: a mistake of the user, and a step that cannot be done here."""

from __future__ import annotations


class InputError(ValueError):
    """A mistake in user data or arguments.

    The message says what was found, where (file, row, id), what was expected and what to do next; whoever shows it to a
    user prints the message alone, without a traceback.
    """


class StepLeftOut(Exception):
    """A step that needs something this machine does not have, and without which the chain can still go on.

    The message says what is needed and where it belongs. The pipeline repeats it at every run and in the report.
    """
