"""What of a module may wait for ever: the rule that nothing waits without a deadline, as far as syntax shows it.

It knows no types: functions are known by what they were imported as, methods by their names, queues and stubs by what
the module itself binds to a name. Invariant: a wait is let pass only where its line says why.
"""

import ast
import re
from collections.abc import Iterator, Sequence

REASON = re.compile(r"# No deadline: \S")
TAKE_A_TIMEOUT = {
    "ray.get",
    "ray.wait",
    "asyncio.wait",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_call",
    "subprocess.check_output",
    "socket.create_connection",
    "urllib.request.urlopen",
    "torch.distributed.init_process_group",  # All that its ranks wait for together, such as a barrier, ends by it.
    "torch.distributed.new_group",
    "torch.distributed.new_subgroups",
}
_QUEUE = re.compile(r"\w*Queue\b")
_STUB = re.compile(r"\w*Stub\b|unary_unary\b")


def endless_waits(source: str) -> list[str]:
    """LINE: CALL of every call that may wait for ever without saying why, and every reason that none needs."""
    module = ast.parse(source)
    explained = {number for number, line in enumerate(source.splitlines(), 1) if REASON.search(line)}
    waits = {node.lineno: ast.unparse(node) for node in _Rule(module).waits()}
    idle = dict.fromkeys(explained - waits.keys(), "gives a reason, and nothing waits for ever here")
    unexplained = {number: call for number, call in waits.items() if number not in explained}
    return [f"{number}: {fault}" for number, fault in sorted((unexplained | idle).items())]


class _Rule:
    def __init__(self, module: ast.Module) -> None:
        self._nodes = list(ast.walk(module))
        self._origins = _origins(self._nodes)
        self._queues = set(_bound(self._nodes, _QUEUE))
        self._stubs = set(_bound(self._nodes, _STUB))

    def waits(self) -> Iterator[ast.expr]:
        bounded = set(map(id, self._bounded_by_asyncio()))
        for node in self._nodes:
            if isinstance(node, ast.Call) and id(node) not in bounded and self._may_wait_for_ever(node):
                yield node
            if isinstance(node, ast.withitem) and self._is_call_of("subprocess.Popen", node.context_expr):
                yield node.context_expr  # The block's end waits for the process.

    def _may_wait_for_ever(self, call: ast.Call) -> bool:
        function = self._dotted(call.func)
        if function in TAKE_A_TIMEOUT or _mentions(call.func, self._stubs, _STUB):
            return not _is_given(call, "timeout")
        if function == "asyncio.wait_for":
            return not _is_given(call, "timeout", place=1)
        match call.func:
            case ast.Attribute(attr="wait" | "join"):
                return not _is_given(call, "timeout", place=0)
            case ast.Attribute(attr="communicate"):
                return not _is_given(call, "timeout")
            case ast.Attribute(attr="get", value=queue) if _mentions(queue, self._queues, _QUEUE):
                return not (_is_given(call, "timeout") or _is_false(call, "block"))
        return False

    def _bounded_by_asyncio(self) -> Iterator[ast.expr]:
        """What `asyncio.wait_for` is given, and what is awaited in a block of `asyncio.timeout`."""
        for node in self._nodes:
            match node:
                case ast.Call(args=[call, *_]) if self._is_call_of("asyncio.wait_for", node):
                    yield call
                case ast.AsyncWith() if any(self._is_call_of("asyncio.timeout", i.context_expr) for i in node.items):
                    yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Await))

    def _is_call_of(self, function: str, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and self._dotted(node.func) == function

    def _dotted(self, node: ast.expr) -> str:
        """The full name of a function, whatever it was imported as."""
        match node:
            case ast.Name(id=name):
                return self._origins.get(name, name)
            case ast.Attribute(value=value, attr=name):
                return f"{self._dotted(value)}.{name}"
        return "?"


def _origins(nodes: Sequence[ast.AST]) -> dict[str, str]:
    """The full name behind each name that the module imports."""
    origins = {}
    for node in nodes:
        match node:
            case ast.ImportFrom(module=str(package), names=names):
                origins |= {one.asname or one.name: f"{package}.{one.name}" for one in names}
            case ast.Import(names=names):
                origins |= {one.asname: one.name for one in names if one.asname}
    return origins


def _bound(nodes: Sequence[ast.AST], kind: re.Pattern[str]) -> Iterator[str]:
    """The names of variables and attributes that hold what a call of this kind made, or are annotated so."""
    for node in nodes:
        match node:
            case ast.Assign(targets=[target], value=value) if _makes(value, kind):
                yield _last_name(target)
            case ast.AnnAssign(target=target, annotation=annotation, value=value):
                if _makes(value, kind) or kind.search(ast.unparse(annotation)):
                    yield _last_name(target)
            case ast.arg(arg=name, annotation=ast.expr() as annotation) if kind.search(ast.unparse(annotation)):
                yield name


def _makes(value: ast.expr | None, kind: re.Pattern[str]) -> bool:
    made = value.value if isinstance(value, ast.DictComp) else value
    return isinstance(made, ast.Call) and bool(kind.fullmatch(_last_name(made.func)))


def _mentions(expression: ast.expr, names: set[str], kind: re.Pattern[str]) -> bool:
    """Whether it is, or is a part of, something that goes by one of these names, or that a call of this kind made."""
    return any(
        _last_name(node) in names or (isinstance(node, ast.expr) and _makes(node, kind))
        for node in ast.walk(expression)
    )


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_given(call: ast.Call, name: str, *, place: int | None = None) -> bool:
    """Whether it has the argument, and that is not None."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == name]
    given += call.args[place : place + 1] if place is not None else []
    return any(not (isinstance(value, ast.Constant) and value.value is None) for value in given)


def _is_false(call: ast.Call, name: str) -> bool:
    given = [keyword.value for keyword in call.keywords if keyword.arg == name] + call.args[:1]
    return any(isinstance(value, ast.Constant) and value.value is False for value in given)
