"""The share of an answer's digits that are right. `python examples/rewards/share_of_digits.py [PORT]`."""

import sys

from reward_server import RewardSample, serve


def score(sample: RewardSample) -> float:
    answer = str(sample.reference["answer"])
    return sum(given == right for given, right in zip(sample.completion, answer, strict=False)) / len(answer)


if __name__ == "__main__":
    serve(score, port=int(sys.argv[1]) if len(sys.argv) > 1 else 50051)
