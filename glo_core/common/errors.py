"""Errors that a user can act on; each message is one line."""


class UserError(Exception):
    """A mistake or a limit that the user can act on: one line naming the thing, the value and the remedy."""


class DivergedError(UserError):
    """The loss is no longer finite; every rank raises it at the same step."""
