"""The ways in which a check ends without success."""


class Rejected(Exception):  # noqa: N818 - a verdict on the certificate, not a failure
    """The certificate proves nothing (exit code 1): the broken rule, where, and in what way."""

    def __init__(self, rule: str, place: str, reason: str) -> None:
        super().__init__(f"{rule}, {place}: {reason}")
        self.rule, self.place, self.reason = rule, place, reason

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Pickled between the processes that share a check."""
        return type(self), (self.rule, self.place, self.reason)


class Unusable(Exception):  # noqa: N818 - likewise
    """A file cannot be read, or is not understood exactly (exit code 2)."""


class Expired(Exception):  # noqa: N818 - neither accepted nor rejected
    """The caller's time is up; nothing was found out."""
