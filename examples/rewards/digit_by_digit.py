"""A reward for every digit of a sum, and one for the whole. `python examples/rewards/digit_by_digit.py [PORT]`."""

import sys

from reward_server import Reward, RewardSample, StepReward, serve


def score(sample: RewardSample) -> Reward:
    answer = str(sample.reference["answer"])
    steps = tuple(
        StepReward(start=place, end=place + 1, value=float(digit == answer[place : place + 1]))
        for place, digit in enumerate(sample.completion)
    )
    return Reward(value=float(sample.completion == answer), steps=steps)


if __name__ == "__main__":
    serve(score, port=int(sys.argv[1]) if len(sys.argv) > 1 else 50051)
