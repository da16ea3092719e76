"""From what marketers write to what is rendered: MJML, CSS, text parts, and what is wrong, with lines."""

from pathlib import Path

import msgspec
import pytest

from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.contexts import SAMPLE, with_variables
from mailerd.campaigns.templates.rendering import Prepared
from mailerd.campaigns.templates.values import CompiledTemplate, Format, TemplateError, TemplateProblem


def problems(html: str, *, format_: Format = "html", subject: str = "S", text: str = "x") -> list[TemplateProblem]:
    try:
        return compile_template(subject, html, text, format_).problems
    except TemplateError as error:
        return error.problems


@pytest.mark.parametrize(
    ("html", "code", "line"),
    [
        ("<p>a</p>\n<script>x</script>", "not_allowed", 2),
        ("<p>a\n</p><iframe src='https://x'></iframe>", "not_allowed", 2),
        ("\n\n<p onclick='x'>a</p>", "not_allowed", 3),
        ("<a\n href='javascript:x'>a</a>", "unsafe_url", 2),
        ("<a href='java&#10;script:x'>a</a>", "unsafe_url", 1),
        ("<meta http-equiv=refresh content='0;url=https://x'>", "not_allowed", 1),
        ("<p>a</p>\n<!-- never ends", "malformed", 2),
        ("<p class='a>b</p>\n", "malformed", 1),
        ("<p>\n{{ contact.first_name }", "syntax", 2),
        ("<p>{% if x %}</p>", "syntax", 1),
        ("{% if x %}\n<div>{% else %}<div class='b'>{% endif %}</div>", "unbalanced", 2),
        ("<div>\n{% if x %}</div>{% endif %}", "unbalanced", 2),
        ("{% set x %}Hi{% endset %}\n<html><body>{{ x }}</body></html>", "malformed", 1),
        ("<p {% if x %}class='a'{% endif %}>b</p>", "misplaced_tag", 1),
        ("<{{ x }}>", "misplaced_tag", 1),
        ("<style>{% if x %}p{color:red}{% endif %}</style>", "misplaced_tag", 1),
        ("<!-- {% if x %} -->{% endif %}", "misplaced_tag", 1),
        ("<a href='https://x/{% if a %}'>b</a>{% endif %}", "unbalanced", 1),
        ("{{ contact.first_name | uper }}", "unknown_filter", 1),
        ("\n{{ contact.first_name | replace('a') }}", "wrong_arguments", 2),
        ("\n{{ x contains 'A' | lower }}", "not_allowed", 2),
    ],
)
def test_what_breaks_or_harms_is_an_error_with_its_line(html: str, code: str, line: int) -> None:
    found = [each for each in problems(html) if each.severity == "error"]

    assert (found[0].code, found[0].line, found[0].pointer) == (code, line, "/html_content")


@pytest.mark.parametrize(
    ("html", "code"),
    [
        ("<form><input></form>", "not_shown"),
        ("<link rel=stylesheet href='https://x/y.css'>", "not_shown"),
        ("<a href='www.example.com'>x</a>", "relative_url"),
        ("<div><p>a</p>", "malformed"),
        ("<p>" + "x" * 103_000 + "</p>", "clipped"),
        ("{{ frist_name }}", "unknown_variable"),
        ("{{ contact.frist_name }}", "unknown_variable"),
        ("<a href='https://x.example/' data-track='no'>x</a>", "unknown_track"),
        ("<body data-track='of'><p>x</p></body>", "unknown_track"),
    ],
)
def test_what_is_doubtful_is_a_warning(html: str, code: str) -> None:
    assert next((each.code, each.severity) for each in problems(html)) == (code, "warning")


def test_what_is_said_of_tracking_and_means_nothing_is_told_with_its_line() -> None:
    (found,) = problems("<p>x</p>\n<a href='https://x.example/' data-track='false'>x</a>")
    assert (found.pointer, found.line) == ("/html_content", 2)
    assert found.detail == 'data-track is "off" or "on", not "false": it is tracked.'


@pytest.mark.parametrize("value", ["off", "On", "", " OFF ", "{{ 'off' if contact.email == 'a' }}"])
def test_what_is_said_of_tracking_and_means_something_is_no_problem(value: str) -> None:
    assert problems(f'<a href="https://x.example/" data-track="{value}">x</a>') == []


def test_a_newsletter_of_fifty_kilobytes_has_nothing_wrong() -> None:
    newsletter = Path("benchmarks/data/newsletter.html").read_text()
    compiled = compile_template("S", newsletter, "")

    assert compiled.problems == []
    assert (len(compiled.links), len(compiled.used)) == (15, 24)
    assert msgspec.json.decode(msgspec.json.encode(compiled), type=CompiledTemplate) == compiled


def test_css_is_inlined_once_and_media_queries_stay() -> None:
    compiled = compile_template(
        "S",
        "<!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0 Strict//EN' 'x'><html><head><style>.a { color: {{ color }}; }"
        " @media (max-width: 600px) { .a { width: 100% } }</style></head><body><p class=a>x</p></body></html>",
        "",
    )

    assert compiled.html.startswith("<!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0 Strict//EN' 'x'>")
    assert "@media (max-width: 600px)" in compiled.html
    assert 'style="color: red;"' in Prepared(compiled).render(with_variables(SAMPLE, {"color": "red"})).html


def test_no_file_and_no_network_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.css"
    secret.write_text("p { color: red; }")
    html = f"<html><head><link rel='stylesheet' href='{secret}'></head>"
    mjml = f"<mjml><mj-head><mj-include path='{secret}' type='css'/></mj-head><mj-body></mj-body></mjml>"

    assert "red" not in compile_template("S", f"{html}<body><p>x</p></body></html>", "").html
    assert problems(mjml, format_="mjml")[0].code == "not_allowed"


def test_rows_of_a_loop_stay_in_their_table() -> None:
    html = "<table>{% for t in contact.tags %}<tr><td>{{ t }}</td></tr>{% endfor %}</table>"
    rendered = Prepared(compile_template("S", html, "")).render(with_variables(SAMPLE, {"contact.tags": ["a", "b"]}))

    assert "<table><tbody><tr><td>a</td></tr><tr><td>b</td></tr></tbody></table>" in rendered.html
    assert rendered.text.split() == ["a", "b"]


MJML = """<mjml><mj-head><mj-title>{{ campaign.name }}</mj-title><mj-style>.x { color: red }</mj-style></mj-head>
<mj-body>
{% if contact.tags contains 'vip' %}
<mj-section><mj-column><mj-text>Only VIPs</mj-text></mj-column></mj-section>{% endif %}
<mj-section>{% for t in contact.tags %}<mj-column><mj-button href="https://x.example/{{ t }}">Go {{ t }}</mj-button>
</mj-column>{% endfor %}</mj-section>
<mj-wrapper>{% if contact.tags contains 'vip' %}
<mj-section><mj-column><mj-text>Wrapped</mj-text></mj-column></mj-section>
{% endif %}</mj-wrapper>
<mj-section><mj-column><mj-table>{% for t in contact.tags %}<tr><td>{{ t }}</td></tr>{% endfor %}</mj-table></mj-column>
</mj-section></mj-body></mjml>"""


def test_tags_survive_mjml_between_its_elements_and_in_them() -> None:
    prepared = Prepared(compile_template("S", MJML, "", "mjml"))
    vip = prepared.render(with_variables(SAMPLE, {"contact.tags": ["vip", "b"]}))
    other = prepared.render(with_variables(SAMPLE, {"contact.tags": ["b"]}))

    for text in ("Only VIPs", "Wrapped"):
        assert [text in part for part in (vip.html, vip.text, other.html, other.text)] == [True, True, False, False]
    assert [part.count("Go b") for part in (vip.html, vip.text)] == [1, 1]
    assert other.html.count("<!--[if") == other.html.count("<![endif]")
    assert [link.url for link in prepared.compiled.links] == ["https://x.example/{{ t }}"]


def test_mjml_that_is_said_to_be_html_is_told_of() -> None:
    (found,) = problems("\n<!-- ours -->" + MJML)

    assert (found.code, found.pointer) == ("invalid_format", "/format")
    assert 'format "mjml"' in found.detail


@pytest.mark.parametrize(
    ("mjml", "code", "line"),
    [
        ("<mjml><mj-body>\n<mj-text>a</mj-body></mjml>", "malformed", 2),
        ("<mjml><mj-body>\n<mj-foo/></mj-body></mjml>", "malformed", 2),
        ("<mjml><mj-body><mj-section>\n{{ x }}</mj-section></mj-body></mjml>", "misplaced_tag", 2),
        ("<mjml><mj-body>\n<mj-section width=5></mj-section></mj-body></mjml>", "malformed", 2),
        ("not at all", "invalid_mjml", None),
    ],
)
def test_what_is_wrong_with_mjml_is_said(mjml: str, code: str, line: int | None) -> None:
    found = problems(mjml, format_="mjml")

    assert (found[0].code, found[0].line) == (code, line)


def test_the_text_part_keeps_order_conditions_and_links() -> None:
    html = (
        "<h1>News</h1><table><tr><td>{% if x %}<p>A</p>{% endif %}</td><td>{% if y %}<p>B</p>{% endif %}</td></tr></table>"  # noqa: E501
        "<ul><li>one</li><li>{{ contact.first_name }}</li></ul><a href='https://a.example'>go</a>"
    )
    prepared = Prepared(compile_template("S", html, ""))

    lines = prepared.render(with_variables(SAMPLE, {"y": True})).text.split("\n")
    assert [line.strip() for line in lines if line.strip()] == [
        "News",
        "B",
        "* one",
        "* Ann",
        "go: https://a.example",
    ]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p><a href='https://a.example/'>The sale</a></p>", "The sale: https://a.example/"),
        ("<p>See <a href='https://a.example/?a=1&amp;b=2'> the\nsale </a>, now</p>", "See the sale (https://a.example/?a=1&b=2), now"),  # noqa: E501
        ("<ul><li><a href='https://a.example/'>one</a></ul>", "* one: https://a.example/"),
        ("<a href='https://a.example/'>A.example</a>", "https://a.example/"),
        ("<a href='https://a.example/'><img src='https://a.example/x.png'></a>", "https://a.example/"),
        ("<a href='https://a.example/'><img src='https://a.example/x.png' alt='Tom &amp; Co'></a>", "Tom & Co: https://a.example/"),
        ("<a href='#top'>up</a> <a name=x>here</a> [b](c)", "up here [b](c)"),
        ("<p>Or <a href='mailto:us@a.example'>write [to] us</a>", "Or write [to] us (mailto:us@a.example)"),
        ("<a href='https://a.example/'><div>Both</div><div>lines</div></a>", "Both lines: https://a.example/"),
        ("{% if custom_fields.no %}{% else %}<a href='{{ unsubscribe_url }}'>Leave</a>{% endif %}", "Leave: https://example.com/unsubscribe"),
        ("<p>{{ contact.first_name }} <a href='https://a.example/'>go</a></p>", "Ann go (https://a.example/)"),
        ("<a href='https://a.example/'>Go:</a>", "Go: https://a.example/"),
        ("<p>5&nbsp;&euro; &lt; 6&nbsp;&euro;</p>", "5 € < 6 €"),
    ],
)  # fmt: skip
def test_links_of_the_text_part_read_as_people_write_them(html: str, text: str) -> None:
    rendered = Prepared(compile_template("S", html, "")).render(SAMPLE)

    assert rendered.text.replace("\xa0", " ").strip() == text


def test_variables_are_found_wherever_they_stand() -> None:
    compiled = compile_template(
        "{{ campaign.name }}",
        "{% for t in contact.tags %}{{ t.x }}{% endfor %}{% if contact['custom_fields']['city'] == x %}{% endif %}"
        "{{ custom_fields[contact.first_name] }}",
        "{{ y | default(z) }}",
    )

    assert sorted(compiled.used) == [
        "campaign.name", "contact.custom_fields.city", "contact.first_name", "contact.tags", "custom_fields", "x", "y", "z",  # noqa: E501
    ]  # fmt: skip


@pytest.mark.parametrize(("field", "subject", "html"), [("/subject", "", "x"), ("/html_content", "S", " "),
                                                       ("/html_content", "S", "a\0"), ("/subject", "\ud800", "x")])  # fmt: skip  # noqa: E501
def test_what_is_empty_or_no_text_is_refused(field: str, subject: str, html: str) -> None:
    assert problems(html, subject=subject)[0].pointer == field
