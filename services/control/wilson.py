"""How sure a share is, from how many cases it was counted: Wilson's interval.

It must not know what was counted.
"""

import math

_Z_95 = 1.959963984540054


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share of `count` independent trials (Wilson 1927)."""
    spread = _Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
