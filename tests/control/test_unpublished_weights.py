"""The loop when the weights of a step do not reach the workers."""

from contextlib import aclosing

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
