"""A reward in ten lines: 1 for the right answer, 0 for any other. `python examples/rewards/ten_lines.py [PORT]`."""

import sys

from reward_server import RewardSample, serve


def score(sample: RewardSample) -> float:
    return 1.0 if sample.completion.strip() == sample.reference["answer"] else 0.0


if __name__ == "__main__":
    serve(score, port=int(sys.argv[1]) if len(sys.argv) > 1 else 50051)
