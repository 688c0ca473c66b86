"""The completions of a group as a reward service sees them.

It must not know the service. Invariant: a sample says everything of its completion and nothing of the prompt's tokens.
"""

from dataclasses import replace

from services.contracts.records import NOT_SAMPLED, RewardSample, RolloutGroup


def to_reward_samples(group: RolloutGroup) -> list[RewardSample]:
    """The group's completions as a reward service sees them."""
    template = RewardSample(
        id="", completion="", prompt=group.prompt.text, messages=group.prompt.messages, reference=group.prompt.reference
    )
    return [
        replace(
            template,
            id=f"{rollout.prompt_id}/{rollout.sample_index}",
            completion=rollout.completion,
            token_ids=tuple(rollout.token_ids[rollout.num_prompt_tokens :]),
            policy_version=max(rollout.policy_versions, default=NOT_SAMPLED),
            finish_reason=rollout.finish_reason,
            turns=rollout.turns,
        )
        for rollout in group.rollouts
    ]
