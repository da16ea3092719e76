"""Templates that mean harm: refused, or stopped, before they cost time or memory worth speaking of."""

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.rendering import Prepared
from mailerd.campaigns.templates.values import RenderError, TemplateError

TIME = 0.1  # seconds of processor time that a rendering may take, and as much again for a slow machine
MEMORY = 50_000_000
LARGE = {
    "contact": {
        "first_name": "Ann",
        "tags": [f"t{n}" for n in range(2_000)],
        "custom_fields": {"big": "<&\"'>" * 12_000, "list": ["x" * 1_000] * 60, "n": 10**14},
    },
    "custom_fields": {"big": "ab" * 30_000},
}

ENTITIES = "{% set s %}" + "&amp;" * 12_700 + "{% endset %}"
LOOP = "{{% for i in range(1000) %}}{{% for j in range(9) %}}{}{{% endfor %}}{{% endfor %}}"
REFUSED = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by index": "{{ ''['__class__'] }}",
    "class by unicode": "{{ ''['\\x5f\\x5fclass__'] }}",
    "attr": "{{ contact | attr('__class__') }}",
    "map": "{{ contact.tags | map('upper') | list }}",
    "format": "{{ '%999999999d' | format(1) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
    "power of text": "{{ 'a' * 10 ** 9 }}",
    "cycler": "{{ cycler('a', 'b') }}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "joiner": "{{ joiner() }}",
    "namespace": "{% set ns = namespace(x=1) %}",
    "methods": "{{ contact.tags.append('x') }}",
    "format of str": "{{ '{0.__class__}'.format(1) }}",
    "self": "{{ self }}",
    "internal names": "{{ _pixel }}",
    "internal filters": "{{ 'a' | _link(1) }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion": "{% for x in contact.tags recursive %}{{ loop(x) }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape false %}x{% endautoescape %}",
    "safe": "{{ contact.first_name | safe }}",
    "filter around": "{% filter upper %}{{ contact.first_name }}{% endfilter %}",
    "filter of set": "{% set x | upper %}{{ contact.first_name }}{% endset %}",
    "four loops": "{% for a in x %}" * 4 + "{% endfor %}" * 4,
    "depth": "{{ " + "(" * 2_000 + "1" + ")" * 2_000 + " }}",
    "long chain": "{{ " + "+".join(["1"] * 3_000) + " }}",
    "ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "too many tags": "{{ a }}" * 6_000,
    "star": "{{ 'a' | replace(*contact.tags) }}",
    "NUL": "{{ 'a\\x00' }}",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_in_a_template_is_refused_with_a_reason(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("S", f"<p>{source}</p>", "x")

    assert caught.value.problems[0].detail
    with pytest.raises(TemplateError):
        compile_template(source[:499], "<p>x</p>", "x")


@pytest.mark.parametrize("nul", ["\\x00", "\\0", "\\u0000", "\\N{NULL}"])
@pytest.mark.parametrize("place", ["subject", "html_content", "text_content"])
def test_a_text_with_a_nul_is_refused_and_its_place_is_named(place: str, nul: str) -> None:
    sources = {"subject": "S", "html_content": "<p>x</p>", "text_content": "x"}
    sources[place] += f"\n{{% if contact.x == 'a{nul}b' %}}y{{% endif %}}"
    with pytest.raises(TemplateError) as caught:
        compile_template(*sources.values())

    (found,) = caught.value.problems
    assert (found.code, found.pointer, found.line) == ("invalid_text", f"/{place}", 2)
    assert "NUL" in found.detail


STOPPED = {
    "text times a number": "{{ 'a' * 999999999 }}",
    "list times a number": "{% for x in [1] * 99999999 %}a{% endfor %}",
    "percent": "{{ '%999999999d' % 1 }}",
    "range": "{% for i in range(1000000000) %}a{% endfor %}",
    "nested ranges": "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}x"
    + "{% endfor %}" * 3,
    "nested tags": "{% for a in contact.tags %}{% for b in contact.tags %}{{ a }}{{ b }}{% endfor %}{% endfor %}",
    "doubling": "{% set a = 'aaaaaaaaaaaaaaaa' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "doubling blocks": "{% set a %}aaaa{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40 + "{{ a }}",
    "doubling lists": "{% set a = [1, 2] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "doubling objects": "{% set a = {'a': 1} %}" + "{% set a = {'a': a, 'b': a} %}" * 40 + "{{ a }}",
    "replace": "{{ custom_fields.big | replace('a', custom_fields.big) }}",
    "join": "{{ range(1000) | join(custom_fields.big) }}",
    "squares": "{% set a = 99 %}" + "{% set a = a * a %}" * 60 + "{{ a }}",
    "large outputs": "{{ contact.custom_fields.big }}" * 200,
    "large set": "{% set a %}{% for i in range(500) %}{{ contact.custom_fields.big }}{% endfor %}{% endset %}",
    "large lists": "{{ contact.tags }}" * 500,
    "filters": "{{ custom_fields.big | upper | lower | title }}" * 100,
    "sorting": "{{ contact.tags | sort | join(',') | length }}" * 200,
    "splitting": "{{ custom_fields.big | split('a') | join(custom_fields.big) }}",
    "empty loops": "{% for i in range(900) %}{% endfor %}" * 700,
    "entities in a list": ENTITIES + LOOP.format("{% if contact.tags contains s %}{% endif %}"),
    "entities compared": ENTITIES + LOOP.format("{% if s == s %}{% endif %}"),
    "entities in links": ENTITIES + LOOP.format('<a href="{{ s }}">a</a>'),
    "long urls": "{% set s %}" + "é" * 60_000 + "{% endset %}" + LOOP.format("{{ s | urlencode | length }}"),
    "many directives": LOOP.format("{{ '2020-01-01' | date('" + "%B" * 100 + "') | length }}"),
    "pieces": LOOP.format("{{ contact.tags[1:] | length }}"),
}
HARMLESS = {
    "large contains": "{% if contact.tags contains 'zz' %}x{% endif %}" * 500,
    "round": "{{ 5 | round(-1000000000) }}",
    "digits": "{{ 5 | number(1000000000) }}",
    "date": "{{ '2024-01-01' | date('%1000000000d') }}",
    "loop facts": "{% for i in range(900) %}{{ loop.length }}{{ loop.previtem }}{{ loop.revindex }}{% endfor %}",
    "comparing": "{% for i in range(900) %}{% if contact.tags == contact.tags %}{% endif %}{% endfor %}",
    "missing": LOOP.format("{{ contact.tags[i * 9 + j + 3000] }}"),
    "quoting": "{{ custom_fields.big | urlencode | urlencode | urlencode }}",
}


@pytest.mark.parametrize("source", [*STOPPED.values(), *HARMLESS.values()], ids=[*STOPPED, *HARMLESS])
def test_nothing_runs_long_or_takes_much_memory(source: str) -> None:
    prepared = Prepared(compile_template("S", f"<p>{source}</p>", "x"))
    fates = {rendered_or_not(prepared, LARGE) for _ in range(2)}
    seconds = min(measured(prepared) for _ in range(3))
    tracemalloc.start()
    rendered_or_not(prepared, LARGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(fates) == 1, "the same every time, on every machine"
    assert fates <= {"too_much_work", "output_too_large", "render_failed"} or source not in STOPPED.values()
    assert seconds < 2 * TIME
    assert peak < MEMORY


def test_what_nobody_counted_is_stopped_by_the_clock() -> None:
    prepared = Prepared(compile_template("S", "<p>{% for i in range(900) %}{{ i | upper }}{% endfor %}</p>", "x"))
    seconds = iter(n / 10 for n in range(1_000))

    with pytest.raises(RenderError) as caught:
        prepared.render(LARGE, clock=lambda: next(seconds))

    assert caught.value.code == "too_slow"
    assert "899" in prepared.render(LARGE, clock=lambda: 1.0).html


@pytest.mark.parametrize(
    "html",
    [
        "<a " + "b " * 40_000 + ">x</a>",
        "<a " + " ".join(f"b{n}" for n in range(40_000)) + ">x</a>",
        "<b>" * 50_000 + "</i>" * 50_000,
        "<style>" + "".join(f"p{{a{n}:b}}" for n in range(20_000)) + "</style><p>x</p>",
        "<b></b>" * 70_000,
    ],
    ids=["attributes", "names of attributes", "open and closed", "properties", "tags"],
)
def test_html_is_refused_before_anything_takes_the_square_of_its_size(html: str) -> None:
    began = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        compile_template("S", html, "x")

    assert any(problem.code == "too_complex" for problem in caught.value.problems)
    assert time.thread_time() - began < 5 * TIME


def test_comments_before_everything_are_read_once() -> None:
    began = time.thread_time()
    compile_template("S", "<!---->" * 300 + "<p>x</p>", "x")

    assert time.thread_time() - began < 5 * TIME


def test_many_warnings_hide_no_error() -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("S", "<form>x</form>" * 60 + "<script>x</script>", "x")

    assert any(problem.code == "not_allowed" for problem in caught.value.problems)


def measured(prepared: Prepared) -> float:
    began = time.thread_time()
    rendered_or_not(prepared, LARGE)
    return time.thread_time() - began


def rendered_or_not(prepared: Prepared, context: dict[str, Any]) -> str:
    try:
        prepared.render(context)
    except RenderError as error:
        return error.code
    return "rendered"


NAMES = st.sampled_from(["contact", "contact.tags", "contact.first_name", "custom_fields.big", "a", "x", "missing"])
SIMPLE = st.one_of(NAMES, st.integers(0, 2_000).map(str), st.sampled_from(["'ab'", "''", "1.5", "none", "true"]))
EXPRESSIONS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "~", "-", "/", "%", "//", "==", "<", "in", "contains"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(
            inner,
            st.sampled_from(
                [
                    "upper",
                    "lower",
                    "length",
                    "join",
                    "sort",
                    "unique",
                    "reverse",
                    "split",
                    "first",
                    "last",
                    "int",
                    "items",
                    "sum",
                    "number",
                ]
            ),
        ).map(lambda parts: f"({parts[0]} | {parts[1]})"),
        st.tuples(inner, inner).map(lambda parts: f"[{parts[0]}, {parts[1]}]"),
        inner.map(lambda part: f"range({part})"),
    ),
    max_leaves=6,
)
TEMPLATES = st.recursive(
    st.one_of(EXPRESSIONS.map(lambda text: f"{{{{ {text} }}}}"), st.just("text")),
    lambda inner: st.one_of(
        st.tuples(EXPRESSIONS, inner).map(lambda parts: f"{{% for x in {parts[0]} %}}{parts[1]}{{% endfor %}}"),
        st.tuples(EXPRESSIONS, inner).map(lambda parts: f"{{% if {parts[0]} %}}{parts[1]}{{% else %}}n{{% endif %}}"),
        EXPRESSIONS.map(lambda text: f"{{% set a = {text} %}}"),
        inner.map(lambda part: f"{{% set a %}}{part}{{% endset %}}"),
        st.lists(inner, min_size=2, max_size=4).map("".join),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEMPLATES)
def test_whatever_is_put_together_ends_in_a_mail_or_a_reason(source: str) -> None:
    try:
        prepared = Prepared(compile_template("S", f"<p>{source}</p>", "x"))
    except TemplateError:
        return
    began = time.thread_time()
    rendered_or_not(prepared, LARGE)

    assert time.thread_time() - began < 3 * TIME


@pytest.mark.parametrize(
    "html",
    [
        "<style>"
        + "".join(f"div div p{{x{n}:red}}" for n in range(8_000))
        + "</style>"
        + "<div><p>x</p></div>" * 8_000,
        "<style>"
        + "".join(f"p:has(a:nth-child({n})){{x:y}}" for n in range(900))
        + "</style>"
        + "<p><a>x</a></p>" * 2_000,
        "<div>" * 100_000,
        "<b>" * 250 + "x",
        "".join(f"<a href='https://x.example/{n}'>l</a>" for n in range(600)),
        "<p>x</p>" * 25_000,
    ],
    ids=["styles", "slow selectors", "depth", "formatting", "links", "elements"],
)
def test_html_that_takes_libraries_for_ever_is_refused(html: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template("S", html, "x")

    assert any(problem.code == "too_complex" for problem in caught.value.problems)


@pytest.mark.parametrize("number", ["1" * 5_000, "1_" * 4_999 + "1"])
def test_a_number_of_thousands_of_digits_is_told_and_no_crash(number: str) -> None:
    with pytest.raises(TemplateError, match="digits"):
        compile_template("S", f"<p>{{{{ {number} }}}}</p>", "")
