"""What a process does once it is in the jail: run a program, call its functions, or hold tests against it.

`script` and `calls` run the program and hand out what it gave; whether that is right is judged outside. `answers` and
`tests` belong together, each in a jail of its own: the tests (code of the data set, which knows the right answers) call
the program's functions over two pipes, and get plain data back. It must not know what is right. Invariant: no process
that has run a line of the program holds an answer, or says how the program did.
"""

import ast
import atexit
import builtins
import gc
import importlib
import json
import operator
import os
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

from . import plain

Order: TypeAlias = dict[str, Any]  # Any: JSON
USUAL_MODULES = (
    "array", "asyncio", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "io", "itertools", "math", "re", "statistics", "string", "threading", "typing",
)  # fmt: skip
MAX_LINE_BYTES = 1 << 20


def warm_up() -> None:
    """Import what programs usually do, before the forks that share it."""
    for name in USUAL_MODULES:
        importlib.import_module(name)
    gc.freeze()


def run(role: str, files: list[int]) -> NoReturn:
    """Play a role, with its order in the first of `files`, and end as Python would, but without taking itself apart."""
    code = 1
    try:
        order_file, *others = files
        with os.fdopen(order_file, "rb") as file:
            order = json.loads(file.read())
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        sys.argv = ["program.py"]
        random.seed(0)  # A program that draws lots does so alike each time.
        ROLES[role](order, *others)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]  # what Python itself calls; waits for the threads
            atexit._run_exitfuncs()
            sys.stdout.flush()
        finally:
            os._exit(code & 0xFF)


def script(order: Order, output: int, standard_input: int) -> None:
    """Run the program from standard input to standard output."""
    for file, standard in ((standard_input, 0), (output, 1)):
        os.dup2(file, standard)
        os.close(file)
    load(order["program"], "__main__")


def calls(order: Order, output: int) -> None:
    """Call a function of the program, and write what each call returned, a line each; nothing for one that raised."""
    function = eval(order["function"], vars(load(order["program"], "program")))
    with os.fdopen(output, "w") as lines:
        for call in order["calls"]:
            try:
                line = json.dumps({"returned": plain.write(function(*call["args"], **call["kwargs"]))})
            except Exception:  # noqa: BLE001 - the program's fault
                line = ""
            lines.write(line + "\n")
            lines.flush()


def answers(order: Order, requests: int, replies: int) -> None:
    """Do with the program's objects what the other side asks for, and answer with plain data or an object's number."""
    objects: list[object] = [load(order["program"], "program")]

    def number(value: object) -> int:
        objects.append(value)
        return len(objects) - 1

    with os.fdopen(requests) as asked, os.fdopen(replies, "w") as told:
        for line in asked:
            request = json.loads(line)
            arguments = plain.read(request["args"], objects.__getitem__)
            try:
                result = OPERATIONS[request["do"]](*arguments, **plain.read(request["kwargs"], objects.__getitem__))
                reply = {"value": plain.write(result, number)}
            except Exception as error:  # noqa: BLE001 - the program's fault, which its tests may expect
                reply = {"raised": type(error).__name__, "text": str(error)[:200]}
            told.write(json.dumps(reply) + "\n")
            told.flush()


def tests(order: Order, output: int, requests: int, replies: int) -> None:
    """Run each test, and write whether it passed; or why it is no test that can be run."""
    with os.fdopen(output, "w") as verdict, os.fdopen(requests, "w") as asked, os.fdopen(replies) as told:
        program = Remote(Line(asked, told), 0)
        try:
            passed = [passes(test, program) for test in order["tests"]]
        except (SyntaxError, ValueError, plain.NotPlain) as error:
            json.dump({"faulty": f"{type(error).__name__}: {error}"}, verdict)
        else:
            json.dump({"passed": passed}, verdict)


def load(source: str, name: str) -> types.ModuleType:
    """Run a program as the module `name`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, "program.py", "exec"), vars(module))
    return module


def passes(test: str, program: "Remote") -> bool:
    """Whether a test runs to its end. Raises SyntaxError, ValueError or NotPlain where the test itself is at fault."""
    names = dict(needed(test, program))
    code = compile(test, "test.py", "exec")
    try:
        exec(code, names)
    except plain.NotPlain:
        raise
    except BaseException:  # noqa: BLE001 - an assertion, or whatever else the test ran into
        return False
    return True


def needed(test: str, program: "Remote") -> Iterator[tuple[str, object]]:
    """The names that a test uses without defining them: modules from here, everything else as the program has it."""
    used, defined, modules = set[str](), {*dir(builtins)}, set[str]()
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            modules.add(node.value.id)
        elif isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add(node.asname or node.name.partition(".")[0])
    for name in sorted(used - defined):
        try:
            # `math.isclose` must not be the program's, even where the test forgot to import it.
            is_module = name in modules & sys.stdlib_module_names
            yield name, importlib.import_module(name) if is_module else getattr(program, name)
        except Exception:  # noqa: BLE001 - then it is not there, as the test will find
            continue


class ProgramError(Exception):
    """The program raised an exception of its own, or is gone."""


class Line:
    """The two pipes to the program: asks, and waits for the answer."""

    def __init__(self, asked: Any, told: Any) -> None:  # Any: text files
        self._asked = asked
        self._told = told

    def ask(self, operation: str, *arguments: object, **named: object) -> object:
        request = {
            "do": operation,
            "args": plain.write(arguments, number_of),
            "kwargs": plain.write(named, number_of),
        }
        try:
            self._asked.write(json.dumps(request) + "\n")
            self._asked.flush()
            reply = json.loads(self._told.readline(MAX_LINE_BYTES))
            if "value" in reply:
                return plain.read(reply["value"], lambda number: Remote(self, number))
            kind, text = getattr(builtins, str(reply["raised"]), None), str(reply["text"])
        except Exception as error:
            raise ProgramError("the program is gone, or does not answer in plain data") from error
        raise kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else ProgramError(text)


class Remote:
    """An object of the program, as its tests see it. Never equal to anything but itself: `==` is not the program's."""

    def __init__(self, line: Line, number: int) -> None:
        self._line = line
        self._number = number

    def __getattr__(self, name: str) -> object:
        return self._line.ask("getattr", self, name)

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._line.ask("call", self, *arguments, **named)

    def __getitem__(self, key: object) -> object:
        return self._line.ask("getitem", self, key)

    def __len__(self) -> int:
        return operator.index(self._line.ask("len", self))  # type: ignore[arg-type]  # raises for what is no number

    def __iter__(self) -> Iterator[object]:
        return self._line.ask("iter", self)  # type: ignore[return-value]  # where it is none, Python says so

    def __next__(self) -> object:
        return self._line.ask("next", self)


def number_of(value: object) -> int:
    """The number of a remote object; anything else cannot be sent to the program."""
    return value._number if isinstance(value, Remote) else plain.no_object(value)


OPERATIONS: Mapping[str, Callable[..., object]] = {
    "call": operator.call,
    "getattr": getattr,
    "getitem": operator.getitem,
    "len": len,
    "iter": iter,
    "next": next,
}
ROLES: Mapping[str, Callable[..., None]] = {"script": script, "calls": calls, "answers": answers, "tests": tests}
