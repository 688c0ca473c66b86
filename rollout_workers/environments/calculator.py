"""Works out what the policy puts between <calculator> and </calculator>, and says what comes out.

It must not know tokens or the policy. Invariants: nothing but arithmetic on numbers is done, and no expression that a
policy writes takes more than a moment; what cannot be worked out is answered in words, as a tool's user expects.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from services.contracts.dialogue import Dialogue

MAX_CHARACTERS = 200
MAX_EXPONENT = 64
MAX_BITS = 4096
"""Largest numerator and denominator on the way, in bits."""

_CALL = re.compile(r"<calculator>((?:(?!<calculator>).)*?)</calculator>", re.DOTALL)
_OPERATIONS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculator(dialogue: Dialogue, *, digits: int = 6) -> str | None:
    """The result of the last call in the policy's turn; None, which ends the dialogue, where there is none.

    Args:
        digits: significant digits of a result that is no integer.
    """
    calls = _CALL.findall(dialogue.said)
    if not calls:
        return None
    try:
        return f"<result>{_written(evaluate(calls[-1]), digits)}</result>"
    except ZeroDivisionError:
        return "<result>error: division by zero</result>"
    except OverflowError:
        return "<result>error: too large</result>"
    except ValueError as error:
        return f"<result>error: {error}</result>"


def evaluate(expression: str) -> Fraction:
    """The exact value of sums, differences, products, quotients and small powers of numbers.

    Raises:
        ValueError: saying why it has none here.
        ZeroDivisionError, OverflowError: for these reasons.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"longer than {MAX_CHARACTERS} characters")
    try:
        parsed = ast.parse(expression.strip().replace(",", "").replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("not an arithmetic expression") from None
    return _value(parsed.body)


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(_exact(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _bounded(_OPERATIONS[type(operation)](_value(left), _value(right)))
    raise ValueError("only numbers, + - * / ^ and brackets are understood")


def _exact(number: float) -> Fraction:
    if number == math.inf:
        raise OverflowError
    return Fraction(str(number))  # As it was written: 0.1 is a tenth.


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"an exponent must be an integer from -{MAX_EXPONENT} to {MAX_EXPONENT}")
    if (max(abs(base.numerator), base.denominator)).bit_length() * abs(exponent.numerator) > MAX_BITS:
        raise OverflowError
    return Fraction(base ** int(exponent))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise OverflowError
    return value


def _written(value: Fraction, digits: int) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.{digits}g}"
