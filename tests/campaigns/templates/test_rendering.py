"""What contacts get: their own data, escaped where it must be, with links and pixel in their places."""

from typing import Any

import pytest

from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.contexts import SAMPLE, with_variables
from mailerd.campaigns.templates.preflight import preflight
from mailerd.campaigns.templates.preview import preview
from mailerd.campaigns.templates.rendering import Prepared, PreparedCache
from mailerd.campaigns.templates.values import Format, RenderedMail, RenderError, TemplateError


def mail(html: str = "<p>x</p>", text: str = "", subject: str = "S", **variables: Any) -> RenderedMail:
    prepared = Prepared(compile_template(subject, html, text))
    return prepared.render(with_variables(SAMPLE, variables), link=lambda slot, url: f"https://t/{slot}", pixel="")


def body(html: str, **variables: Any) -> str:
    return mail(html, "x", **variables).html.removeprefix("<html><head></head><body>").removesuffix("</body></html>")


def said(text: str, **variables: Any) -> str:
    return mail(text=text, **variables).text


@pytest.mark.parametrize(
    ("tags", "source", "expected"),
    [
        (["vip"], "{% if contact.tags contains 'vip' %}yes{% endif %}", "yes"),
        (["a"], "{% if contact.tags contains 'vip' %}yes{% else %}no{% endif %}", "no"),
        (["a"], "{% if contact.tags not contains 'vip' %}no{% endif %}", "no"),
        (["a"], "{% if not contact.tags contains 'vip' %}no{% endif %}", "no"),
        (["b"], "{% if x %}{% elif contact.tags contains 'b' and contact.email contains '@' %}b{% endif %}", "b"),
        (["b"], "{{ 'B' if contact.tags contains 'b' else 'none' }}", "B"),
        (["b"], "{{ 'in' if contact.tags contains ('B' | lower) else 'out' }}", "in"),
        (["b"], "{{ contact contains 'email' }}", "true"),
        (["b"], "{{ missing contains 'x' }}", "false"),
        (["b"], "This list contains 'b' and x contains y.", "This list contains 'b' and x contains y."),
        (["b"], "{% set contains = 'name' %}{{ contains }}", "name"),
        (["b"], "{{ 'x' if contact.tags is contains 'b' }}", "x"),
    ],
)
def test_contains_is_read_as_the_documents_write_it(tags: list[str], source: str, expected: str) -> None:
    assert said(source, **{"contact.tags": tags}) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ contact.nickname | default('friend') }}", "friend"),
        ("{{ empty | default('x') }}{{ contact.custom_fields.a.b.c }}", "x"),
        ("{{ 1234567.891 | number(2, '.', ',') }}", "1.234.567,89"),
        ("{{ contact.created_at | date('%-d %B %Y') }}", "1 January 2026"),
        ("{{ ['a', 'b'] | join(' & ') }} {{ contact.first_name | upper }}", "a & b ANN"),
        ("{% for n in range(3) %}{{ loop.index }}{% if not loop.last %},{% endif %}{% endfor %}", "1,2,3"),
        ("{% for k, v in {'b': 2, 'a': 1} | items %}{{ k }}{{ v }} {% endfor %}", "a1 b2 "),
        ("{{ 'yes' if contact.age > 18 else 'no' }}", "no"),
        ("{{ 2 * 3 + 1 }} {{ 'a' ~ 1 }} {{ missing + 1 }}", "7 a1 "),
        ("{% set x %}<b>{{ contact.first_name }}{% endset %}{{ x | length }}", "6"),
        ("{{ 'long text here' | truncate(9) }}", "long…"),
        ("{% raw %}{{ untouched }}{% endraw %}", "{{ untouched }}"),
        ("{{ none }}{{ true }}{{ [1, 'a'] }}", "true1, a"),
    ],
)
def test_the_language_does_what_newsletters_need(source: str, expected: str) -> None:
    assert said(source) == expected


@pytest.mark.parametrize("whose", ["yes", "no"])
@pytest.mark.parametrize(
    "html",
    [
        "{% if x == 'yes' %}Hello{% endif %} all",
        "<!DOCTYPE html><html>{% if x == 'yes' %}<p>Hello</p>{% endif %} all</html>",
        "<html><head><title>{{ x }}</title></head>{% if x == 'yes' %}Hello{% endif %} all</html>",
        "{% set a = 1 %}<!DOCTYPE html>\n<html><head></head><body>{% if x == 'yes' %}Hello{% endif %} all</body></html>",  # noqa: E501
    ],
)
def test_conditions_at_the_beginning_do_not_take_the_document_with_them(html: str, whose: str) -> None:
    rendered = mail(html, x=whose).html

    assert [rendered.count(tag) for tag in ("<html>", "<body>", "</body></html>")] == [1, 1, 1]
    assert ("Hello" in rendered) == (whose == "yes")


def test_html_is_escaped_and_text_and_subject_are_not() -> None:
    name = "<script>alert('x')</script> & co"
    rendered = mail("<p title='{{ contact.first_name }}'>{{ contact.first_name }}</p>", "{{ contact.first_name }}",
                    "Hi {{ contact.first_name }}", **{"contact.first_name": name})  # fmt: skip

    assert "<script>" not in rendered.html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; co</p>" in rendered.html
    assert rendered.text == name
    assert rendered.subject == f"Hi {name}"


@pytest.mark.parametrize(
    "source",
    [
        "{% set x %}{{ contact.first_name }}{% endset %}{{ x }}",
        "{% set x %}{{ contact.first_name }}{% endset %}{{ x | upper | lower }}",
        "{{ '<i>' ~ contact.first_name }}",
        "{% set x %}<br>{% endset %}{{ x ~ contact.first_name }}",
        "{{ contact.first_name | escape }}{{ [contact.first_name] | join }}{{ [contact.first_name] }}",
        "{% set x %}{{ contact.first_name }}{% endset %}{{ x | replace('&lt;', '<') }}{{ x | reverse | reverse }}",
    ],
)
def test_no_way_leads_around_escaping(source: str) -> None:
    rendered = body(f"<p>{source}</p>", **{"contact.first_name": "<script>x</script>"})

    assert "<script" not in rendered.lower()


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "java\nscript:alert(1)", " \x01javascript:x", "vbscript:x",
     "data:text/html,<script>x</script>", "java\u200bscript:x", "file:///etc/passwd"],
)  # fmt: skip
def test_no_value_makes_a_link_a_script(url: str) -> None:
    rendered = body('<a href="{{ contact.custom_fields.site }}">x</a><img src="{{ contact.custom_fields.site }}">',
                    **{"contact.custom_fields.site": url})  # fmt: skip

    assert 'href="#"' in rendered
    assert 'src="#"' in rendered


def test_values_in_styles_stay_values() -> None:
    rendered = body("<style>p { color: {{ color }} }</style><p>a</p><b style='width: {{ width }}'>b</b>",
                    color="red; background: url(https://evil.example)", width='1px" onload="x')  # fmt: skip

    assert "url(" not in rendered
    assert 'width: 1px onloadx"' in rendered


@pytest.mark.parametrize("name", ["Ann\r\nBcc: eve@example.com", "Ann\nX: y", "Ann\x00\x0b\x85\u2028x", "\r\n Ann"])
def test_a_subject_is_one_line_whatever_a_contact_is_called(name: str) -> None:
    subject = mail(subject="Hi {{ contact.first_name }}!", **{"contact.first_name": name}).subject

    assert subject.isprintable()
    assert subject.startswith("Hi Ann")


@pytest.mark.parametrize("name", ["דָּוִד", "محمد", "👩‍👩‍👧‍👦 Zoë", "李雷"])
def test_subjects_in_every_script_come_through(name: str) -> None:
    rendered = mail(
        "<p>{{ contact.first_name }}</p>", subject="{{ contact.first_name }} 🎉", **{"contact.first_name": name}
    )

    assert rendered.subject.removesuffix(" 🎉").encode() == rendered.subject.removesuffix(" 🎉").encode()
    assert name in rendered.html
    assert rendered.text.strip() == name


def test_an_empty_subject_is_no_mail() -> None:
    with pytest.raises(RenderError, match="subject is empty"):
        mail(subject="{{ contact.nothing }}")


LINKS = """
<body><a href="https://a.example/?x=1&amp;y=2#z">one</a> <a href="https://a.example/?x=1&amp;y=2#z">again</a>
<a href="https://b.example/{{ contact.custom_fields.city }}?a=1&amp;b=2">city</a>
<a href="mailto:x@a.example">mail</a> <a href="tel:+1">call</a> <a href="#top">top</a>
<a href="{{ unsubscribe_url }}">leave</a> <a href="{{ preferences_url }}">choose</a>
<a href="https://c.example/" data-track="off">quiet</a></body>
"""


def test_links_are_tracked_once_each_and_those_that_must_not_are_left_alone() -> None:
    asked: list[tuple[int, str]] = []

    def link(slot: int, url: str) -> str:
        asked.append((slot, url))
        return f"https://t.example/{slot}?a&b"

    compiled = compile_template("S", LINKS, "")
    context = with_variables(SAMPLE, {"contact.custom_fields.city": "New York"})
    rendered = Prepared(compiled).render(context, link=link, pixel="https://t.example/o/1?a&b")

    assert [(each.link, each.url) for each in compiled.links] == [
        (1, "https://a.example/?x=1&y=2#z"),
        (2, "https://b.example/{{ contact.custom_fields.city }}?a=1&b=2"),
    ]
    assert set(asked) == {(1, "https://a.example/?x=1&y=2#z"), (2, "https://b.example/New%20York?a=1&b=2")}
    assert rendered.html.count('href="https://t.example/1?a&amp;b"') == 2
    assert rendered.html.count('href="https://t.example/2?a&amp;b"') == 1
    for left in ("mailto:x@a.example", "tel:+1", "#top", "https://example.com/unsubscribe", "https://c.example/"):
        assert f'href="{left}"' in rendered.html
    assert "data-track" not in rendered.html
    pixel = '<img src="https://t.example/o/1?a&amp;b" width="1" height="1" alt="" style="display:block;border:0">'
    assert rendered.html.rstrip().endswith(f"{pixel}</body></html>")
    assert "one (https://t.example/1?a&b)" in rendered.text
    assert "leave (https://example.com/unsubscribe)" in rendered.text


QUIET = "<body data-track=\"{% if contact.custom_fields.quiet == 'yes' %}off{% endif %}\">"
QUIET_MJML = QUIET.replace("body", "mj-body")


@pytest.mark.parametrize(
    ("format_", "source"),
    [
        ("html", f'{QUIET}<a href="https://a.example/{{{{ contact.first_name }}}}">a</a></body>'),
        ("html", f'<html><head><title>x</title></head>{QUIET}<p><a href="https://a.example/">a</a></body></html>'),
        (
            "mjml",
            f"<mjml>{QUIET_MJML}<mj-section><mj-column><mj-text>"
            '<a href="https://a.example/">a</a></mj-text></mj-column></mj-section></mj-body></mjml>',
        ),
    ],
)
def test_a_template_can_say_for_whom_nothing_is_tracked(format_: Format, source: str) -> None:
    prepared = Prepared(compile_template("S", source, "", format_))

    def sent(quiet: str) -> RenderedMail:
        context = with_variables(SAMPLE, {"contact.custom_fields.quiet": quiet})
        return prepared.render(context, link=lambda slot, _: f"https://t.example/{slot}", pixel="https://t.example/o")

    for part in (sent("yes").html, sent("yes").text):
        assert "https://a.example/" in part
        assert "t.example" not in part
    assert 'src="https://t.example/o"' in sent("no").html
    assert "https://t.example/1" in sent("no").html
    assert "https://t.example/1" in sent("no").text
    assert "data-track" not in sent("no").html


def test_a_condition_that_only_half_stands_in_what_the_body_says_of_tracking_is_refused() -> None:
    with pytest.raises(TemplateError):
        compile_template("S", '{% if contact.x %}<body data-track="{% endif %}off"><p>x</p></body>', "")


def test_without_tracking_links_are_as_they_were_written() -> None:
    rendered = Prepared(compile_template("S", LINKS, "Go: https://a.example/x?y=1.")).render(SAMPLE)

    assert 'href="https://a.example/?x=1&amp;y=2#z"' in rendered.html
    assert "<img" not in rendered.html
    assert rendered.text == "Go: https://a.example/x?y=1."


def test_urls_in_plain_text_are_tracked_too() -> None:
    assert said("See https://a.example/{{ contact.first_name }}, or {{ unsubscribe_url }}.") == (
        "See https://t/1, or https://example.com/unsubscribe."
    )


def test_two_contacts_never_see_each_others_data() -> None:
    prepared = Prepared(
        compile_template(
            "{{ contact.first_name }}",
            "{% set greeting %}Hi {{ contact.first_name }}{% endset %}"
            "<p>{{ greeting }} {% for t in contact.tags %}{{ t }}{% endfor %}</p>"
            "<a href='https://x.example/{{ contact.email }}'>l</a>",
            "",
        )
    )
    people = [
        with_variables(SAMPLE, {"contact": {"first_name": f"N{n}", "email": f"e{n}", "tags": [f"t{n}"]}})
        for n in range(20)
    ]
    mails = [prepared.render(person) for person in people for _ in range(2)]

    for n, person in enumerate(people):
        for got in mails[2 * n : 2 * n + 2]:
            assert got.subject == f"N{n}"
            assert f"<p>Hi N{n} t{n}</p>" in got.html
            assert f"https://x.example/e{n}" in got.text
        assert person["contact"]["tags"] == [f"t{n}"], "nothing is written to what is rendered from"


def test_declared_variables_must_be_there_and_others_come_out_empty() -> None:
    prepared = Prepared(compile_template("S", "<p>{{ contact.first_name }}{{ coupon }}</p>", "", "html", ["coupon"]))

    for missing in ({}, {"coupon": ""}, {"coupon": None}, {"coupon": "  "}):
        with pytest.raises(RenderError) as caught:
            prepared.render(with_variables(SAMPLE, missing))
        assert caught.value.code == "missing_variable"
    assert "<p>X1</p>" in prepared.render(with_variables(SAMPLE, {"coupon": "X1", "contact.first_name": None})).html


def test_a_preview_lists_what_is_missing() -> None:
    prepared = Prepared(
        compile_template("S", "<p>{{ contact.custom_fields.city }}{{ a | default('x') }}{{ c }}</p>", "", "html", ["c"])
    )
    shown = preview(prepared, SAMPLE)

    assert [(each.severity, each.detail.split()[0]) for each in shown.problems] == [
        ("error", "c"),
        ("warning", "contact.custom_fields.city"),
    ]
    assert "<p>x</p>" in shown.html
    assert shown.size == len(shown.html)


async def test_preflight_names_the_contacts_who_would_get_nothing() -> None:
    prepared = Prepared(compile_template("S", "<p>{{ 10 / contact.custom_fields.n }}</p>", ""))
    people = [
        with_variables(SAMPLE, {"contact": {"contact_id": f"con_{n}", "custom_fields": {"n": n}}}) for n in range(3)
    ]

    failures = await preflight(prepared, people)

    assert [(each.contact_id, each.code) for each in failures] == [("con_0", "render_failed")]


def test_the_cache_holds_as_many_bytes_as_it_may_and_forgets_the_oldest() -> None:
    one = Prepared(compile_template("S", "<p>x</p>", ""))
    cache = PreparedCache(size=one.size * 2)
    for id_ in (1, 2):
        cache.put(id_, one)
    assert cache.get(1) is one
    cache.put(3, one)

    assert [cache.get(id_) is one for id_ in (1, 2, 3)] == [True, False, True]
