"""The language of templates: Jinja's syntax, with everything taken out that could reach, loop or grow without end.

Three walls. What is not on the list of `checking` is no template at all: no calls but `range`, no imports, no macros,
no names with underscores. What is rendered sees only plain data: `getattr` looks into dicts and nothing else, operators
take numbers, filters are ours. And every rendering has a budget (`Rendering.fuel`): loops pay for their nodes before
they begin, texts for their size, so that time and memory are bounded by counting, the same on every machine. Behind it
stands a second line for what nobody counted: a clock of processor time, handed in.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import ChainableUndefined, Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from markupsafe import Markup, escape

from mailerd.campaigns.templates.values import RenderError

FUEL = 100_000  # steps of one rendering: about as many nodes
MAX_TEXT = 64_000  # characters that an expression or a {% set %} may make
MAX_OUTPUT = 2_000_000  # characters of one part of a mail
MAX_NUMBER = 10**15
CHARACTERS = 32  # that cost as much as one step
MOST_TIME = 0.25  # seconds of processor time of one rendering; what is counted takes less than half of it
BETWEEN_LOOKS = 256  # steps, after which the clock is looked at
MOST_MISSED = 200  # names of variables that are told
LONGEST_NAME = 200  # of them
LOOP_FACTS = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"})
SPECIAL = re.compile("[&<>'\"]")  # what `escape` changes
BEFORE_OPERATOR = frozenset({"string", "integer", "float", "rparen", "rbracket", "rbrace"})
KEYWORDS = frozenset(
    {"if", "elif", "else", "for", "in", "and", "or", "not", "is", "set", "with", "filter", "contains", "recursive"}
)


LinkFor = Callable[[int, str], str | None]  # of a slot and its URL: the tracked URL, or None
Clock = Callable[[], float]  # seconds of processor time, of the thread that renders: waiting is nobody's fault


class Missing(ChainableUndefined):
    """A variable that is not there: empty text, false, and so is everything in it."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self._undefined_name or ""


class Rendering(Context):
    """One rendering: its variables, what is left of its budget, and which variables it missed."""

    fuel = FUEL
    link: LinkFor | None = None
    clock: Clock | None = None
    until = 0.0  # of the clock

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.missing: dict[str, None] = {}  # names, in the order in which they were wanted
        self._before_look = 0

    def spend(self, steps: int) -> None:
        """Raises `RenderError` when the budget is used up, or the time."""
        self.fuel -= steps
        if self.fuel < 0:
            raise RenderError("too_much_work", "The template takes too many steps: its loops or texts are too long.")
        self._before_look -= steps or 1
        if self._before_look <= 0 and self.clock is not None:
            self._before_look = BETWEEN_LOOKS
            if self.clock() > self.until:
                raise RenderError("too_slow", f"The template takes more than {MOST_TIME * 1000:.0f} ms.")

    def made(self, size: int) -> None:
        """A text of so many characters is about to be made."""
        if size > MAX_TEXT:
            raise RenderError("too_much_work", f"The template makes a text of more than {MAX_TEXT:,} characters.")
        self.spend(1 + size // CHARACTERS)

    def missed(self, name: str) -> None:
        if name and len(self.missing) < MOST_MISSED:
            self.missing[name] = None


def text_of(context: Rendering, value: Any) -> str:
    """A value as text: nothing for what is missing, lists with commas. Raises `RenderError` for what is no text."""
    kind = type(value)
    if kind is str or kind is Markup:
        text: str = value
        if len(text) > CHARACTERS:
            context.spend(len(text) // CHARACTERS)
        return text
    if value is None:
        return ""
    if isinstance(value, Undefined):
        context.missed(getattr(value, "_undefined_name", None) or "")
        return ""
    if kind is bool:
        return "true" if value else "false"
    if isinstance(value, list | tuple | range):
        context.spend(1 + len(value))
        parts = [text_of(context, each) for each in value if not isinstance(each, list | tuple | dict)]
        context.made(sum(map(len, parts)) + 2 * len(parts))
        return ", ".join([plain(context, part) for part in parts])
    if isinstance(value, dict | LoopContext) or callable(value):
        raise RenderError("render_failed", "The template prints an object; name one of its fields.")
    return str(value)


def plain(context: Rendering, value: str) -> str:
    """Text without its being marked as HTML: it is escaped where it is put out. Its entities are paid for."""
    if not isinstance(value, Markup):
        return value
    context.spend(1 + len(value) // CHARACTERS + value.count("&") // 4)
    return value.unescape()


@pass_context
def _finalize(context: Rendering, value: Any) -> str:
    return text_of(context, value)


def _put_out(context: Rendering, value: Any) -> str:
    """A value as it stands in text."""
    text = value if type(value) is str and len(value) <= CHARACTERS else text_of(context, value)
    return text if type(text) is str else str(text)


def _put_out_escaped(context: Rendering, value: Any) -> str:
    """A value as it stands in HTML. Most have nothing to be escaped, which is found out sooner than done."""
    text = value if type(value) is str and len(value) <= CHARACTERS else text_of(context, value)
    return text if type(text) is Markup or SPECIAL.search(text) is None else escape(text)


class _Generator(CodeGenerator):
    """Puts values out by one call, instead of one that finalizes and one that escapes."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        self.write("environment.put_out(context, ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo) -> None:
        self.write(")")


def bounded(parts: Iterable[str], limit: int = MAX_TEXT * 4) -> str:
    """What blocks are put together with."""
    found = list(parts)
    if sum(map(len, found)) > limit:
        raise RenderError("too_much_work", f"The template makes a text of more than {limit:,} characters.")
    return "".join(found)


class Contains(Extension):
    """`x contains y`, as Liquid writes it, is read as the test `x is contains(y)`."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        before: Token | None = None
        held: Token | None = None  # a `not` that may belong to `contains`
        for token in stream:
            operator = token.type == "name" and token.value == "contains" and _is_value(before)
            if operator:
                yield Token(token.lineno, "name", "is")
            if held is not None:
                yield held
                held = None
            if token.type == "name" and token.value == "not" and _is_value(before):
                held = token
                continue
            yield token
            before = token
        if held is not None:
            yield held


def _is_value(token: Token | None) -> bool:
    if token is None:
        return False
    return token.type in BEFORE_OPERATOR or (token.type == "name" and token.value not in KEYWORDS)


class Language(ImmutableSandboxedEnvironment):
    """Jinja as templates may use it. `filters` and `tests` are put in by `filters`."""

    context_class = Rendering
    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"+", "-"})
    concat = staticmethod(bounded)

    def __init__(self, *, html: bool) -> None:
        super().__init__(
            autoescape=html,
            undefined=Missing,
            optimized=False,
            finalize=_finalize,
            extensions=[Contains],
            cache_size=0,
            lstrip_blocks=html,  # an indented tag leaves an empty line: a line of spaces is not canonical (DKIM)
        )
        self.put_out = _put_out_escaped if html else _put_out  # what generated code calls
        self.globals.clear()
        self.filters.clear()
        self.tests.clear()

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict:
            try:
                return obj[attribute]
            except KeyError:
                return Missing(name=attribute[:LONGEST_NAME])
        if isinstance(obj, LoopContext) and attribute in LOOP_FACTS:
            return getattr(obj, attribute)
        if isinstance(obj, Missing):
            return Missing(name=f"{obj.name}.{attribute[:LONGEST_NAME]}"[:LONGEST_NAME])
        return Missing(name=attribute[:LONGEST_NAME])

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, list | tuple | str | range) and type(argument) is int:
            try:
                return obj[argument]  # slices come by way of a filter, which pays
            except IndexError:
                return Missing(name=str(argument))
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        return Missing(name="")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers; what is missing makes the result missing."""
        for side in (left, right):
            if side is None or isinstance(side, Undefined):
                return Missing(name=getattr(side, "_undefined_name", None) or "")
            if not isinstance(side, int | float):
                raise RenderError("render_failed", f"{operator} is for numbers; ~ puts texts together.")
        if operator == "**":
            raise RenderError("render_failed", "There are no powers in templates.")
        return in_range(self.binop_table[operator](left, right))

    def call_unop(self, context: Context, operator: str, arg: Any) -> Any:
        if arg is None or isinstance(arg, Undefined):
            return arg
        if not isinstance(arg, int | float):
            raise RenderError("render_failed", f"{operator} is for numbers.")
        return self.unop_table[operator](arg)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as Jinja has it
        raise RenderError("render_failed", "Nothing can be called in a template.")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return False

    def is_safe_callable(self, obj: Any) -> bool:
        return False


def in_range(number: Any) -> Any:
    if not -MAX_NUMBER <= number <= MAX_NUMBER:  # also: not a number
        raise RenderError("render_failed", f"A number is larger than {MAX_NUMBER:,}.")
    return number


def rendering(language: Language, variables: Mapping[str, Any]) -> Rendering:
    """The context of one rendering; `variables` is not copied deeply: plain data that nothing here can change."""
    return Rendering(language, dict(variables), None, {})
