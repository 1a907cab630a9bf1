"""The exceptions of the package that are meant for a person to read."""


class UserError(Exception):
    """Bad input: what is wrong, where, what was expected, what to do. The CLI prints it, exit code 2."""


class DivergedError(Exception):
    """A training run that cannot go on because numbers stopped being finite; the text is the reason."""
