"""Why a judge gave no verdict.

Invariant: a fault is either the sample's, the judge's or the endpoint's, and its failure code says which.
"""

from services.contracts.errors import TriremeError
from services.contracts.records import Failure, FailureCode


class JudgeFault(TriremeError):
    """A question that stays without a verdict; `failure` is what it means for a sample.

    INVALID_SAMPLE and INTERNAL are about this question, and so is TIMEOUT, which a question that takes the model long
    meets alone; the other codes are about the endpoint and concern every one.
    """

    def __init__(self, message: str, *, code: FailureCode, retryable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message, retryable=retryable)

    @property
    def concerns_all(self) -> bool:
        """Whether other questions would fail as well."""
        return self.failure.code not in (FailureCode.INVALID_SAMPLE, FailureCode.INTERNAL, FailureCode.TIMEOUT)


class Unreadable(Exception):
    """A reply that arrived and has no verdict in it."""
