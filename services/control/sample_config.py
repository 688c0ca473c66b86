"""Everything `trireme sample` can be told: what an evaluation can, and which completions become demonstrations."""

from services.control.config import RunConfig
from services.control.selection import SelectConfig


class SampleRunConfig(RunConfig):
    """What `trireme sample` can be told."""

    select: SelectConfig | None = None
    """Which completions become demonstrations; without it all are written down, and none is scored."""
