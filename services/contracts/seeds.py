"""The seeds of what is sampled. They must not depend on who samples it, or when."""

from hashlib import blake2b


def sampling_seed(*, run_seed: int, prompt_id: str, sample_index: int, policy_version: int, turn: int = 0) -> int:
    """The seed of one turn of a completion: a function of what it is, never of where or when it was sampled.

    Returns:
        An integer in [0, 2**31), the range that sampling engines accept.
    """
    identity = f"{run_seed}/{prompt_id}/{sample_index}/{policy_version}" + (f"/{turn}" if turn else "")
    return int.from_bytes(blake2b(identity.encode(), digest_size=4).digest(), "big") & 0x7FFF_FFFF
