"""A game in turns: the policy guesses a number from 1 to 7, and hears whether it must guess higher or lower.

`respond` is the environment, `score` the reward. Three guesses are enough for one who halves what is left, and find
three numbers of seven for one who does not listen.
"""

from reward_server import RewardSample
from services.contracts.dialogue import Dialogue


def respond(dialogue: Dialogue) -> str | None:
    """ "+" where the number is higher than the guess and "-" where it is lower; None once it was found, or for what is
    no guess."""
    guess, number = dialogue.said.strip(), dialogue.reference["number"]
    if guess not in "1234567" or len(guess) != 1 or int(guess) == number:
        return None
    return "+" if number > int(guess) else "-"


def score(sample: RewardSample) -> float:
    """1 if the last guess is the number. The turns tell what the policy said from what it was told."""
    return float(sample.answer.strip() == str(sample.reference["number"]))
