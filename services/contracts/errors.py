"""Every failure that Trireme can name, and the exit code each ends a command with.

An error's text says what happened, the value, and what to do. `UserError` means the input is wrong: nothing was
started and nothing lost. Every other `TriremeError` means that the run failed.
"""


class TriremeError(Exception):
    """A failure with a name: ends a command with `exit_code` and its text, without a traceback."""

    exit_code = 1


class UserError(TriremeError, ValueError):
    """The user's input is wrong; the text names the value, the rule and the fix."""

    exit_code = 2


class DeadlineExceeded(TriremeError, TimeoutError):
    """A wait ended without its result."""

    def __init__(self, *, waited_for: str, waited_s: float, advice: str) -> None:
        super().__init__(waited_for, waited_s, advice)
        self.waited_for = waited_for
        self.waited_s = waited_s
        self.advice = advice

    def __reduce__(self) -> tuple[object, ...]:
        return _deadline_exceeded, (self.waited_for, self.waited_s, self.advice)

    def __str__(self) -> str:
        return f"waited {self.waited_s:.0f} s for {self.waited_for}; {self.advice}"


def _deadline_exceeded(waited_for: str, waited_s: float, advice: str) -> DeadlineExceeded:
    return DeadlineExceeded(waited_for=waited_for, waited_s=waited_s, advice=advice)


class RewardUnavailable(TriremeError):
    """No reward server answered within the retry budget."""


class RewardContractError(TriremeError):
    """A reward service broke the contract: wrong count, foreign ids, a value not finite or out of its range."""


class SampleNotScorable(TriremeError):
    """A reward service refused a sample for good."""


class EnvironmentFailed(TriremeError):
    """The environment of a dialogue raised, or gave no answer in time, as often as it may."""


class RewardAlarm(TriremeError):
    """An alarm against reward hacking, or a broken reward, whose action is to stop the run."""


class RegressionBreach(TriremeError):
    """A held-out evaluation fell further below its score before than its gate lets it. Nothing failed: all that a run
    had made is kept, and this exit code is for scripts that publish a model only where there is none."""

    exit_code = 3


class WeightSyncError(TriremeError):
    """New weights did not arrive as they were published; the worker serves nothing until they do."""


class ChecksumMismatch(WeightSyncError):
    """A bucket's bytes differ from what was published."""


class CanaryMismatch(WeightSyncError):
    """The loaded model gives other logprobs than the learner: a stale head, a missing tensor, a wrong dtype."""


class VersionMismatch(WeightSyncError):
    """Weights of another version than the one asked for."""


class WorkerLost(TriremeError):
    """A process of the run died or stopped answering."""


class LearnerLost(TriremeError):
    """A rank of the learner died or stopped answering: all ranks start anew from the last checkpoint."""


class NonFiniteStep(TriremeError):
    """Several learner steps in a row had a NaN or infinite loss or gradient."""


class CheckpointError(TriremeError):
    """A checkpoint is incomplete, foreign or damaged."""


class RunFolderError(TriremeError):
    """A file in the run's folder could not be written, most likely for want of space."""


class ControlError(TriremeError):
    """A live run could not be reached, or could not do what an operator asked of it."""
