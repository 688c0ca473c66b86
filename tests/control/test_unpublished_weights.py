"""The loop when the weights of a step do not reach the workers."""

from contextlib import aclosing
from typing import Any

import pytest

from services.contracts.errors import TriremeError
from services.contracts.records import Publication
from tests.control.test_controller import Setting
from tests.fakes import FakeLearner


class UnpublishedLearner(FakeLearner):
    """Its weights after the first step cannot be written."""

    async def publish(self, version: int) -> Publication:
        if version == 1:
            raise TriremeError("no space left for the weights")
        return await super().publish(version)


class UnwrittenSetting(Setting):
    """Cannot write down what is published after the first step."""

    def note(self, event: str, **fields: Any) -> None:
        if event == "published" and fields["version"] == 1:
            raise TriremeError("no space left for a line")
        super().note(event, **fields)


async def test_a_step_whose_weights_cannot_be_published_is_told_of_and_nothing_is_measured_as_if_they_were() -> None:
    setting, numbers = Setting(learner=UnpublishedLearner()), []
    await setting.controller.publish(0)
    async with aclosing(setting.controller.steps(100)) as steps:
        with pytest.raises(TriremeError, match="no space left for the weights"):
            async for step in steps:
                numbers.append(step.number)
                with pytest.raises(TriremeError, match="no space left"):
                    await setting.controller.synced()
    assert numbers == [1]


async def test_a_publication_that_cannot_be_written_down_stops_the_run_with_the_reason() -> None:
    setting = UnwrittenSetting()
    await setting.controller.publish(0)
    async with aclosing(setting.controller.steps(100)) as steps:
        with pytest.raises(TriremeError, match="no space left for a line"):
            assert [step.number async for step in steps] == [1]
