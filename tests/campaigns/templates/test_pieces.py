"""What goes out as bytes is what is rendered as text, whatever stands in the template and in the contact."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailerd.campaigns import mime
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.contexts import SAMPLE
from mailerd.campaigns.templates.pieces import body_of
from mailerd.campaigns.templates.rendering import Prepared
from mailerd.campaigns.templates.values import RenderError, TemplateError
from mailerd.wire.compose import Address
from mailerd.wire.dkim import is_canonical
from mailerd.wire.message import MAX_LINE
from mailerd.wire.smtp import dot_stuff, dot_unstuff

LINKS = (
    '<p>{{ contact.first_name }}\n<a href="https://a.example/?x=1&amp;y=2">100 % a</a>\n<a href="https://b.example/">b</a>\n'
    "line\nline\n{% for n in range(3) %}<a href='https://a.example/?x=1&amp;y=2'>{{ n }}</a>{% endfor %}\n"
    '{% set block %}<a href="https://b.example/">in it</a>{% endset %}{{ block }}'
    '<a href="https://c.example/{{ contact.first_name }}">c</a>\n</p>'
)
HTML = [
    LINKS,
    "<p>{{ contact.first_name }}",
    "<p>ö\nü\ne {{ contact.first_name }}\n%s %b\n",
    "<p>" + "x\n" * 5 + "y" * 1_200,
    "<p>a\n<pre>\n one\n  two  spaces\n\ttab \n</pre>\n{{ contact.first_name }}",
    "<p>a\n  {% if contact.first_name %}\n  b {% endif %} \nc",
    "<p>a\nb\n{{ contact.first_name }}\nc\n.d\ne\n.\nf",
    "<p>a\n.{{ contact.first_name }}.\n{% if contact.first_name %}.{% endif %}",
]
NAMES = ["Ann", " ", "Ann ", "a  b", "\t", "Zoë", "a\nb", "a\rb\r", "\r", "<b>&", "", "x" * 1_100, "%s", "\0", "\ud800"]
NAMES += [".", ".x", "a\n.b", "\r."]


def prepared(html: str) -> Prepared:
    return Prepared(compile_template("Hello", f"<html><body>{html}</body></html>", "", "html", []))


def track(slot: int, url: str) -> str:
    return f"https://t.example/c/{slot}?a&b"


@pytest.mark.parametrize("html", HTML)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tracked", [True, False])
def test_bytes_are_what_the_text_is(html: str, name: str, tracked: bool) -> None:
    made = prepared(html)
    context = SAMPLE | {"contact": SAMPLE["contact"] | {"first_name": name}}
    link = track if tracked else None
    fixed = {slot: track(slot, url) for slot, url in made.fixed} if tracked else None

    text = made.render(context, link=link, pixel="https://t.example/o/1")
    mail = made.gather(context, link=link, fixed=fixed, pixel="https://t.example/o/1").written()

    assert mail.subject == text.subject
    for body, expected in ((mail.html, text.html), (mail.text, text.text)):
        content = b"".join(body.parts)
        assert content == b"".join(body_of(expected).parts)
        lengths = [max(map(len, part.split(b"\n"))) for part in (content, body.outline)]
        assert lengths[0] == lengths[1] or max(lengths) <= MAX_LINE + 1
        assert content.isascii() == body.outline.isascii()
        assert is_canonical(content) == is_canonical(body.outline)
        assert b"\0" not in content
    assert "{{" not in text.html
    assert "\0" not in text.html + text.text + mail.subject


@pytest.mark.parametrize(
    "text",
    [
        "hello\n{{ 'NUL' }}.\nMAIL FROM:ceo",
        "{{ 'NUL' }}{{ 'NUL' }}.\n",
        "a\n{% if contact.email %}{{ 'NUL' }}{% endif %}.\nb",
        "a{{ '\\nNUL.\\n' }}b",
        "a\n{{ 'NU' ~ 'NUL' }}{{ contact.first_name | replace('Ann', 'NUL') }}\n.",
        "a\n{% set x %}{{ 'NUL' }}{% endset %}{{ x }}.\nb",
        "a{{ '\\rNUL\\n' }}.\nb",
    ],
)
def test_a_nul_of_a_version_that_was_stored_before_does_not_leave(text: str) -> None:
    compiled = compile_template("S{{ 'NUL' }}", f'<p>{text}</p><a href="https://a.example/">a</a>', text)
    was = {name: getattr(compiled, name).replace("NUL", "\\x00") for name in ("subject", "html", "text")}
    made = Prepared(msgspec.structs.replace(compiled, **was))

    shown = made.render(SAMPLE)
    mail = made.gather(SAMPLE).written()

    assert "\0" not in mail.subject + shown.subject + shown.html + shown.text
    for body, expected in ((mail.html, shown.html), (mail.text, shown.text)):
        content = b"".join(body.parts)
        assert content == b"".join(body_of(expected).parts)
        assert b"\0" not in content
        assert dot_stuff(content).count(b"\r\n.\r\n") == 1


def test_links_of_many_rounds_of_a_loop_count_as_output() -> None:
    html = '{% for n in range(900) %}{% for m in range(9) %}<a href="https://a.example/">a</a>{% endfor %}{% endfor %}'
    made = prepared(html)
    with pytest.raises(RenderError, match="characters"):
        made.gather(SAMPLE, fixed={1: "https://t.example/c/" + "x" * 2_000})


VALUES = [
    *NAMES,
    ".\n",
    "\n.",
    "\r\n.\r\n",
    "x\r",
    "\n",
    "é",
    "\x85.",
    "\u2028.",
    "\x0b.",
    "x" * 990,
    "é" * 499,
    None,
    True,
    1.5,
]
PARTS = [
    *("{{ contact.first_name }}", "{{ contact.last_name }}", "{{ contact.first_name ~ contact.last_name }}"),
    *("\n", "\n.", ".", " ", "\n\n", ".x", "é", "x" * 200, "y" * 960, "\r\n", "\r", ".\r\n.", "<p>", "</p>", "{#\n#}."),
    *("{% if contact.first_name %}.{% endif %}", "{% for i in range(3) %}.\n{{ contact.first_name }}{% endfor %}"),
    *("{% set v %}\n.{{ contact.last_name }}{% endset %}{{ v }}", "{{ '\\r\\n.' }}", "{%- if 1 %}\n.{% endif -%}\n ."),
    *("https://x.example/a?b=1 ", "https://x.example/{{ contact.first_name }} ", "{{ contact.first_name | upper }}"),
    "<a href='https://x.example/?q=.&r'>l</a>",
]
TEMPLATES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join)


@given(TEMPLATES, TEMPLATES, st.sampled_from(VALUES), st.sampled_from(VALUES), st.booleans())
@settings(deadline=None, max_examples=300)
def test_what_is_said_of_a_mail_is_true_of_it(html: str, text: str, first: object, last: object, tracked: bool) -> None:
    try:
        made = Prepared(compile_template("Hello", html, text, "html", []))
        context = SAMPLE | {"contact": SAMPLE["contact"] | {"first_name": first, "last_name": last}}
        fixed = {slot: track(slot, url) for slot, url in made.fixed} if tracked else None
        written = made.gather(context, link=track if tracked else None, fixed=fixed).written()
    except (TemplateError, RenderError):
        return
    head = mime.head(Address("news@shop.example", "Shop"), "", "", "")
    mail = mime.mail(
        head, b"To: c@example.org\r\n", b"Subject: s\r\n", "d", "<a@b>", html=written.html, text=written.text
    )

    assert not mail.canonical or is_canonical(mail.content.partition(b"\r\n\r\n")[2])
    assert mail.content.count(b"\r") == mail.content.count(b"\n") == mail.content.count(b"\r\n")
    assert max(map(len, mail.content.split(b"\r\n"))) <= MAX_LINE
    for part in mail.content.split(b"--=_")[1:3]:
        assert b"Encoding: 7bit" not in part or part.isascii()
    assert b"\0" not in mail.content
    stuffed = dot_stuff(mail.content)
    assert stuffed.count(b"\r\n.\r\n") == 1
    assert dot_unstuff(stuffed.removesuffix(b".\r\n")) == mail.content
