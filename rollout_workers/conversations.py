"""From a conversation to its tokens and which of them are trained: chosen turns, as the chat template writes them.

It must not know files or models. Invariants: the whole conversation is tokenised once, as the template writes it; a
token is trained when all of its text lies in a trained turn; where the template does not show where a turn lies, that
is an error and no guess. T tokens.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from jinja2 import TemplateError
from pydantic import model_validator

from rollout_workers.chat_format import check_encodable
from services.contracts.errors import UserError
from services.contracts.records import Demonstration, Message
from services.contracts.settings import Section

Role = Literal["system", "user", "assistant", "tool"]
Span = tuple[int, int]

_ROLES = get_args(Role)
_KEYS = {"role", "content", "train", "weight"}
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NO_TEMPLATE = "set data.response_field and data.template: plain, or name a tokenizer that has one in model.tokenizer"


class ConversationConfig(Section):
    """Which turns of a conversation supervised training learns."""

    messages_field: str | None = None
    """Column with a whole conversation, a list of {role, content} turns, of which supervised training learns some; in
    place of prompt_field and response_field. A turn's own `train: false` or `weight: 0` leaves it out."""
    train_roles: tuple[Role, ...] = ("assistant",)
    """Whose turns of messages_field are learnt, where a turn does not say it itself."""

    @model_validator(mode="after")
    def _roles_have_messages(self) -> Self:
        if self.messages_field is None and self.train_roles != ("assistant",):
            raise ValueError(
                f"train_roles {self.train_roles} has no effect without messages_field; name the column, or remove it"
            )
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of a conversation, and whether it is trained."""

    message: Message
    trained: bool


def to_turns(value: object, config: ConversationConfig, *, system: str | None, where: str) -> tuple[Turn, ...]:
    """A column's conversation.

    Args:
        system: content of a turn put before it.
        where: file, row and column, for errors.

    Raises:
        UserError: it is no conversation, a turn holds what would be lost, or none of them is to be trained.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise UserError(f"{where}: a conversation is a list of {{role, content}} turns, not {value!r:.80}")
    turns = [_to_turn(turn, config, f"{where}, turn {number}") for number, turn in enumerate(value)]
    if not any(turn.trained for turn in turns):
        roles = sorted({turn.message.role for turn in turns})
        raise UserError(
            f"{where}: no turn is trained; it has the roles {roles}, and data.train_roles is "
            f"{list(config.train_roles)}; leave the row out, or add a role"
        )
    before = [Turn(message=Message(role="system", content=system), trained=False)] if system else []
    return (*before, *turns)


def encode_conversation(tokenizer: Any, turns: Sequence[Turn], *, where: str) -> Demonstration:  # Any: transformers
    """The conversation's tokens (T,), with a loss mask of 1 on those of trained turns.

    What a template marks with {% generation %} is an assistant's turn. Without marks an assistant's turn begins where
    the template's generation prompt ends; any other begins with its header. It reaches to the next turn, or to its
    last end-of-sequence token, since nobody samples what a template writes behind that.

    Raises:
        UserError: no chat template, or one in which the trained turns cannot be found.
    """
    if not tokenizer.chat_template:
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no chat template; {_NO_TEMPLATE}")
    try:
        text, spans = _marked_turns(tokenizer, turns) or _rendered_turns(tokenizer, turns, where)
    except TemplateError as error:
        raise UserError(f"{where}: the chat template refuses the conversation: {error}") from error
    check_encodable(text, where)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    token_ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    mask = array("b", bytes(len(token_ids)))
    for begin, end in spans:
        inside = [i for i, (first, last) in enumerate(offsets) if begin <= first < last <= end]
        ends = [i for i in inside if token_ids[i] == tokenizer.eos_token_id]
        for i in inside:
            mask[i] = not ends or i <= ends[-1]
    return Demonstration(token_ids=array("i", token_ids), loss_mask=mask)


def _to_turn(value: object, config: ConversationConfig, where: str) -> Turn:
    if not isinstance(value, Mapping) or value.get("role") not in _ROLES:
        raise UserError(f"{where}: expected {{role, content}} with a role among {_ROLES}, found {value!r:.80}")
    if not isinstance(value.get("content"), str):
        raise UserError(f"{where}: content is a string, not {value.get('content')!r:.80}")
    lost = sorted(key for key, given in value.items() if key not in _KEYS and given not in (None, [], {}))
    if lost:
        raise UserError(f"{where}: {lost} would be lost, since a turn has {sorted(_KEYS)}; write it into the content")
    flags = {name: value[name] for name in ("train", "weight") if value.get(name) is not None}
    if any(flag not in (0, 1) for flag in flags.values()) or len(set(flags.values())) > 1:
        raise UserError(f"{where}: train is true or false and weight 1 or 0, and they agree, not {flags}")
    trained = bool(next(iter(flags.values()), value["role"] in config.train_roles))
    return Turn(message=Message(role=value["role"], content=value["content"]), trained=trained)


def _marked_turns(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, list[Span]] | None:  # Any: transformers
    """Text and trained spans by the template's own marks; None where it has none, or they do not tell the turns."""
    from transformers.utils.chat_template_utils import render_jinja_template  # late: it takes a second

    template = tokenizer.get_chat_template()
    if not _MARK.search(template):
        return None
    texts, marks = render_jinja_template(
        [_chat(turns)],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    answers = [turn for turn in turns if turn.message.role == "assistant"]
    others = any(turn.trained for turn in turns if turn.message.role != "assistant")
    if others or len(marks[0]) != len(answers):
        return None
    return texts[0], [span for span, turn in zip(marks[0], answers, strict=True) if turn.trained]


def _rendered_turns(tokenizer: Any, turns: Sequence[Turn], where: str) -> tuple[str, list[Span]]:  # Any: ditto
    """Text and trained spans, by what the template writes of the conversation's beginnings."""
    text = _render(tokenizer, turns)
    spans = []
    for number, turn in enumerate(turns):
        if not turn.trained:
            continue
        answers = turn.message.role == "assistant"
        if answers and not number:
            raise UserError(f"{where}: the first turn is the assistant's, whose beginning only a turn before it shows")
        before = _render(tokenizer, turns[:number], add_generation_prompt=answers) if number else ""
        through = _render(tokenizer, turns[: number + 1])
        for beginning in (before, through):
            if not text.startswith(beginning):
                raise UserError(_disagreement(text, beginning, number, where))
        spans.append((len(before), len(through)))
    return text, spans


def _render(tokenizer: Any, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> str:  # Any: ditto
    chat = _chat(turns)
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt))


def _chat(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.message.role, "content": turn.message.content} for turn in turns]


def _disagreement(text: str, beginning: str, number: int, where: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(text, beginning, strict=False)) if a != b), len(text))
    return (
        f"{where}, turn {number}: the chat template writes the conversation up to here differently once it goes on "
        f"(character {place}: {beginning[place : place + 30]!r}, in the whole {text[place : place + 30]!r}), so the "
        "turn's tokens cannot be told; use a template with {% generation %} marks, or rows that end with a trained "
        "turn and train: false on the others"
    )
