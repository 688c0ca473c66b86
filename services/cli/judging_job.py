"""What every judging command does around its job: say how it goes on when it ends early, and what it took.

It must not know what is judged.
"""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from reward_server.judges.judge import Counts
from services.contracts.errors import TriremeError, UserError

Outcome = TypeVar("Outcome")


def run_job(work: Coroutine[Any, Any, Outcome], folder: Path) -> Outcome:
    """Do the job's work to its end."""
    try:
        return asyncio.run(work)
    except UserError:
        raise
    except (TriremeError, KeyboardInterrupt):
        print(f"what is judged is kept in {folder}; the same command goes on from there", file=sys.stderr)
        raise


def tell_cost(counts: Counts, num_failed: int) -> None:
    """Print what the job took, over all its starts."""
    print(
        f"asked            {counts.questions} questions, {counts.cache_hits} answered from the cache, "
        f"{counts.unreadable} replies unreadable, {num_failed} items failed"
    )
    print(f"cost             {counts.input_tokens} + {counts.output_tokens} tokens, {counts.paid:.4f} paid")
