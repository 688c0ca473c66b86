"""Reward servers: write a function, serve it over gRPC.

    from reward_server import serve

    serve(lambda sample: float(sample.completion.strip() == sample.reference["answer"]))

Nothing here, nor what it imports, needs torch, Ray, vLLM or DeepSpeed.
"""

from reward_server.function import RewardFunction, RewardOptions
from reward_server.sdk import serve
from services.contracts.records import Failure, FailureCode, Message, Reward, RewardSample, StepReward

__all__ = [
    "Failure",
    "FailureCode",
    "Message",
    "Reward",
    "RewardFunction",
    "RewardOptions",
    "RewardSample",
    "StepReward",
    "serve",
]
