"""What may stand in a template: a list of the nodes, names, filters and tests; and what it reads.

A template is parsed, never run, before it is known to be good. `bind` then puts the costs in: each loop, list, `~`,
comparison and call of `range` becomes a filter of `filters` that pays before it works.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from inspect import signature

from jinja2 import TemplateSyntaxError, nodes
from jinja2.visitor import NodeTransformer

from mailerd.campaigns.templates.filters import FILTERS, TESTS
from mailerd.campaigns.templates.sandbox import Language
from mailerd.campaigns.templates.values import TemplateProblem

MAX_NODES = 5_000
MAX_DEPTH = 60  # of nodes in nodes
MAX_LOOPS = 3  # in one another
MAX_LITERAL = 10_000  # characters of a text in an expression
ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.With,
    nodes.FilterBlock,
    nodes.Name,
    nodes.Const,
    nodes.Tuple,
    nodes.List,
    nodes.Dict,
    nodes.Pair,
    nodes.CondExpr,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Concat,
    nodes.Compare,
    nodes.Operand,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
    nodes.Not,
    nodes.And,
    nodes.Or,
)
SAID = {
    nodes.Call: "Nothing can be called; what Python does by methods, filters do: {{ contact.first_name | upper }}.",
    nodes.Include: "Templates cannot include others.",
    nodes.Import: "Templates cannot import others.",
    nodes.FromImport: "Templates cannot import others.",
    nodes.Extends: "Templates cannot extend others.",
    nodes.Block: "Templates have no blocks.",
    nodes.Macro: "Templates have no macros.",
    nodes.CallBlock: "Templates have no macros.",
    nodes.Pow: "There are no powers in templates.",
    nodes.Scope: "Escaping cannot be switched off.",
    nodes.ScopedEvalContextModifier: "Escaping cannot be switched off.",
}
RESERVED = frozenset({"self", "super", "caller", "varargs", "kwargs"})


@dataclass
class Checked:
    """What was found in one source."""

    problems: list[TemplateProblem] = field(default_factory=list)
    used: list[str] = field(default_factory=list)  # dotted, each once, in the order in which they stand
    tree: nodes.Template | None = None


def check(language: Language, source: str, pointer: str, *, internal: bool = False, stored: bool = False) -> Checked:
    """Parse what a user wrote, and look at all of it; `internal`: what compiling puts in may be there too.

    `stored`: it was saved when a text could hold a NUL, and may still; who renders it leaves that out.
    """
    found = Checked()
    try:
        found.tree = language.parse(source)
    except TemplateSyntaxError as error:
        found.problems.append(TemplateProblem("syntax", f"{error.message}", pointer, error.lineno))
        return found
    except ValueError:  # of a number for which Python has a bound
        found.problems.append(TemplateProblem("too_complex", "A number has thousands of digits.", pointer))
        return found
    except RecursionError:
        found.problems.append(TemplateProblem("too_complex", "The template is nested too deeply.", pointer))
        return found
    seen: set[tuple[str, int | None]] = set()
    for code, detail, line in _faults(found.tree, internal, stored):
        if (detail, line) not in seen:
            seen.add((detail, line))
            found.problems.append(TemplateProblem(code, detail, pointer, line))
    if not found.problems:
        found.used = variables(found.tree)
    return found


def _faults(tree: nodes.Template, internal: bool, stored: bool) -> Iterator[tuple[str, str, int]]:
    """Code, detail and line of all that is not allowed. Goes on without recursion: depth is one of the bounds."""
    count = 0
    stack: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    while stack:
        node, depth, loops = stack.pop()
        count += 1
        if count > MAX_NODES:
            yield "too_complex", f"The template has more than {MAX_NODES:,} parts.", node.lineno
            return
        if depth > MAX_DEPTH:
            yield "too_complex", "The template is nested too deeply.", node.lineno
            return
        loops += isinstance(node, nodes.For)
        if loops > MAX_LOOPS:
            yield "too_complex", f"More than {MAX_LOOPS} loops stand in one another.", node.lineno
            return
        children = list(node.iter_child_nodes())
        if isinstance(node, nodes.Call) and _is_range(node):
            children = [*node.args]
        else:
            yield from _fault(node, internal, stored)
        stack.extend((child, depth + 1, loops) for child in reversed(children))


def _fault(node: nodes.Node, internal: bool, stored: bool) -> Iterator[tuple[str, str, int]]:
    line = node.lineno
    if not isinstance(node, ALLOWED):
        detail = SAID.get(type(node), f"{type(node).__name__} is no part of templates.")
        yield "not_allowed", detail, line
    match node:
        case nodes.Name(name=name) if (name.startswith("_") and not internal) or name in RESERVED:
            yield "not_allowed", f"{name} cannot be the name of a variable.", line
        case nodes.Getattr(attr=name) | nodes.Getitem(arg=nodes.Const(value=str(name))) if name.startswith("_"):
            yield "not_allowed", f"{name} cannot be the name of a field.", line
        case nodes.Keyword():
            pass
        case nodes.Filter(name=name) if name not in FILTERS or (name.startswith("_") and not internal):
            yield "unknown_filter", f"There is no filter {name}; there are {_names(FILTERS)}.", line
        case nodes.Filter(name=name, node=nodes.Test(name="contains")):
            yield "not_allowed", f"Write contains ('…' | {name}): here {name} would get true or false.", line
        case nodes.Test(name=name) if name not in TESTS:
            yield "unknown_test", f"There is no test {name}; there are {_names(TESTS)}.", line
        case nodes.Compare(ops=ops) if len(ops) > 1:
            yield "not_allowed", "Write a < b and b < c.", line
        case nodes.FilterBlock() if not internal:  # what it makes is not escaped again
            yield "not_allowed", "Filters stand in {{ … }}, not around blocks.", line
        case nodes.AssignBlock(filter=nodes.Filter()) if not internal:
            yield "not_allowed", "Write {% set x %}…{% endset %}, and the filter where x is used.", line
        case nodes.For(recursive=True):
            yield "not_allowed", "Loops cannot call themselves.", line
        case nodes.Const(value=str(text)) if "\0" in text and not stored:
            yield "invalid_text", "A text in a tag has a NUL character (\\x00): no mail may have one.", line
        case nodes.Const(value=value) if isinstance(value, str) and len(value) > MAX_LITERAL:
            yield "too_complex", f"A text in a tag has more than {MAX_LITERAL:,} characters.", line
        case nodes.Const(value=value) if isinstance(value, int | float) and not -(10**15) <= value <= 10**15:
            yield "not_allowed", "A number is too large.", line
    if isinstance(node, nodes.Filter | nodes.Test) and (node.dyn_args is not None or node.dyn_kwargs is not None):
        yield "not_allowed", "A filter's arguments stand one by one.", line
    elif isinstance(node, nodes.Filter | nodes.Test):
        function = (FILTERS if isinstance(node, nodes.Filter) else TESTS).get(node.name)
        if function is not None and not _takes(function, node):
            yield "wrong_arguments", f"{node.name} does not take these arguments.", line


def _takes(function: Callable[..., object], node: nodes.Filter | nodes.Test) -> bool:
    named = {str(each.key): each.value for each in node.kwargs}
    try:
        signature(function).bind(None, None, *node.args, **named)
    except TypeError:
        return False
    return True


def _names(words: Iterable[str]) -> str:
    return ", ".join(sorted(name for name in words if not name.startswith("_")))


def _is_range(node: nodes.Call) -> bool:
    named = isinstance(node.node, nodes.Name) and node.node.name == "range"
    plain = not node.kwargs and node.dyn_args is None and node.dyn_kwargs is None
    return named and plain and 1 <= len(node.args) <= 3


def variables(tree: nodes.Node) -> list[str]:
    """The variables that come from outside, dotted as far as their names are fixed: `contact.custom_fields.city`."""
    own = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "store"} | {"loop", "range"}
    found: dict[str, None] = {}
    inner: set[int] = set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Name)):
        if id(node) in inner:
            continue
        path = _path(node, inner)
        if path and path[0] not in own:
            found.setdefault(".".join(path))
    return list(found)


def _path(node: nodes.Node, inner: set[int]) -> list[str]:
    """The names of a chain of fields; what is below the chain is put into `inner`, because it is no path of its own."""
    steps: list[str] = []
    while True:
        match node:
            case nodes.Name(ctx="load"):
                return [node.name, *reversed(steps)]
            case nodes.Getattr():
                steps.append(node.attr)
            case nodes.Getitem(arg=nodes.Const(value=str(name))):
                steps.append(name)
            case nodes.Getitem():
                steps.clear()  # what is behind depends on the contact
            case _:
                return []
        node = node.node
        inner.add(id(node))


class _Binding(NodeTransformer):
    """Puts the costs in. Filters take the context, so that nothing of it is worked out while compiling."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        weight = 1 + sum(1 for part in (*node.body, *([node.test] if node.test else [])) for _ in _all(part))
        self.generic_visit(node)
        node.iter = _call("_loop", node.iter, nodes.Const(weight))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _call("_joined", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        (operand,) = node.ops
        return _call("_compare", node.expr, nodes.Const(operand.op), operand.expr)

    def visit_Call(self, node: nodes.Call) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _call("_range", *node.args)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _call("_slice", node.node, *(part or nodes.Const(None) for part in parts))

    def visit_List(self, node: nodes.List) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _call("_flat", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _call("_flat", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return node if node.ctx == "store" else _call("_flat", node)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:  # noqa: N802
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, "_kept", [], [], None, None)
        return node


def _call(name: str, first: nodes.Node, *rest: nodes.Node) -> nodes.Filter:
    return nodes.Filter(first, name, [*rest], [], None, None, lineno=first.lineno)


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.iter_child_nodes())


def bind(tree: nodes.Template, language: Language) -> nodes.Template:
    """The same template with its costs put in; `tree` must have been checked."""
    bound = _Binding().visit(tree)
    bound.set_environment(language)
    return bound  # type: ignore[no-any-return]
