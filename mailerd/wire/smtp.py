"""SMTP on the wire (RFC 5321): replies, MAIL and RCPT with their parameters, EHLO keywords, dots and line ends."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from mailerd.errors import Refused, RemoteProtocolError
from mailerd.wire.address import Mailbox, parse_mailbox

MAX_LINE = (
    4096  # bytes of one reply line; RFC 5321 section 4.5.3.1.5 says 512, the explanations of the large are longer
)
MAX_LINES = 128  # of one reply
MAX_KEPT = 16 * 1024  # bytes of one reply; lines beyond are read, but their words are not kept
MAX_TEXT = 2_000  # characters of `Reply.text`, before bytes are escaped: it goes into rows, events and logs

# ---- replies

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
# As RFC 3463 has it, and as appliances write it: `#5.1.1`, `5.1.1:`. No part of an IP address.
_ENHANCED = re.compile(r"#?([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[:;,.]?\s+|[:;,.]?\Z)")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # the low byte of a surrogate escape is the byte that was there
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Reply(msgspec.Struct, frozen=True):
    """One reply. `lines` is what stood after the code and its space or hyphen, every byte kept (surrogateescape).

    Of the lines with which a reply grows beyond MAX_KEPT bytes nothing is kept: they are "".
    """

    code: int
    lines: tuple[str, ...]

    @property
    def positive(self) -> bool:
        """2yz and 3yz."""
        return self.code < 400

    @property
    def transient(self) -> bool:
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    @property
    def enhanced(self) -> str:
        """The enhanced status code (RFC 2034) of the first line that has one of the class of `code`, else ""."""
        for line in self.lines:
            match = _ENHANCED.match(line)
            if match and ord(match[1][0]) - 48 == self.code // 100:
                return match[1]
        return ""

    @property
    def text(self) -> str:
        """The words of all lines in one, without enhanced codes; printable and encodable always, for rows and logs.

        Cut at MAX_TEXT: it is kept for each recipient and at each attempt, and the peer chooses how long it is.
        """
        return printable(" ".join(filter(None, map(self._words, self.lines)))[:MAX_TEXT])

    def _words(self, line: str) -> str:
        match = _ENHANCED.match(line)
        if match and ord(match[1][0]) - 48 == self.code // 100:
            line = line[match.end() :]
        return line.strip()

    def __str__(self) -> str:
        """`250 2.1.5 ok`: one line, printable."""
        return " ".join(filter(None, (str(self.code), self.enhanced, self.text)))


def printable(text: str) -> str:
    r"""Return `text` in one line that any encoder takes: bytes that were no UTF-8 as `\xff`, controls as spaces."""
    if text.isprintable():
        return text
    escaped = _SURROGATE.sub(lambda match: rf"\x{ord(match[0]) & 0xFF:02x}", text)
    return _CONTROLS.sub(" ", escaped).strip()


class ReplyReader:
    """Cuts what the peer sends into replies (RFC 5321 section 4.2), liberal in what it takes.

    Lines may end in a bare LF; a reply may have no text; when the lines of a reply differ in their code, the last is
    meant. What cannot be a reply raises RemoteProtocolError, and then the connection is lost: nobody knows any more
    which reply answers what.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []  # of the reply under way
        self._size = 0  # of its lines, bytes
        self._broken: RemoteProtocolError | None = None

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes: none, one, or many when pipelined.

        Replies that came before a broken line are returned first (one may be the 250 for a whole message), and the
        next call raises. `feed(b"")` asks whether that is so.
        """
        if self._broken is not None:
            raise self._broken
        *lines, self._rest = (self._rest + data).split(b"\n")
        replies: list[Reply] = []
        try:
            for line in lines:
                if reply := self._take(line):
                    replies.append(reply)  # noqa: PERF401  a comprehension would lose them when a line raises
            if len(self._rest) > MAX_LINE:
                raise _too_long()
        except RemoteProtocolError as error:
            self._broken = error
            self._rest = b""
            if not replies:
                raise
        return replies

    def _take(self, line: bytes) -> Reply | None:
        if len(line) > MAX_LINE:
            raise _too_long()
        code, more, text = _reply_line(line)
        if len(self._lines) == MAX_LINES:
            raise RemoteProtocolError(f"reply of more than {MAX_LINES} lines")
        self._size += len(line)
        self._lines.append(text if self._size <= MAX_KEPT else "")
        if more:
            return None
        lines, self._lines, self._size = self._lines, [], 0
        return Reply(code, tuple(lines))


@lru_cache(maxsize=64)  # hosts say the same words to each mail
def _reply_line(line: bytes) -> tuple[int, bool, str]:
    """The code, whether another line follows, and the words."""
    match = _REPLY_LINE.fullmatch(line.rstrip(b"\r"))
    if match is None:
        raise RemoteProtocolError(f"not a reply line: {line[:80]!r}")
    code, more, text = match.groups(b"")
    return int(code), more == b"-", text.decode("utf-8", "surrogateescape")  # lose no byte


def _too_long() -> RemoteProtocolError:
    return RemoteProtocolError(f"reply line longer than {MAX_LINE} bytes")


def parse_ehlo(reply: Reply) -> dict[str, str]:
    """Return the extensions of an EHLO reply: keyword in upper case -> parameters. The first line is the greeting.

    A keyword that comes twice has the parameters of both. `AUTH=LOGIN`, as old servers say it, is `AUTH LOGIN`.
    """
    extensions: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        keyword = keyword.upper()
        if keyword.startswith("AUTH="):
            keyword, parameters = "AUTH", f"{keyword[5:]} {parameters}"
        if keyword:
            extensions[keyword] = f"{extensions.get(keyword, '')} {parameters.strip()}".strip()
    return extensions


# ---- MAIL and RCPT


class MailCommand(msgspec.Struct, frozen=True):
    """What follows `MAIL `. `sender` is "" for the null sender, `ret` FULL, HDRS or "", `envid` decoded or "".

    `auth` is the decoded AUTH parameter (RFC 4954 section 5): "" for `<>`, None when it was not given. `require_tls` is
    REQUIRETLS (RFC 8689); whether the session may say it is for the caller to know.
    """

    sender: str
    size: int | None = None
    body: str = "7BIT"
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""
    auth: str | None = None
    require_tls: bool = False


class RcptCommand(msgspec.Struct, frozen=True):
    """What follows `RCPT `. `notify` is the upper-case NOTIFY list or "", `orcpt` is `type;address`, decoded, or ""."""

    address: Mailbox
    notify: str = ""
    orcpt: str = ""


MAX_ENVID = 100  # characters as sent, RFC 3461 section 5.4
MAX_ORCPT = 500  # characters as sent, section 5.4
MAX_AUTH = 500  # characters as sent, RFC 4954 section 5

_FROM = re.compile(r'FROM: ?<([^<>"\s]*)>(?: ++(.*))?', re.IGNORECASE)
_TO = re.compile(r'TO: ?<([^<>"\s]*)>(?: ++(.*))?', re.IGNORECASE)
# A quoted local part may hold angle brackets and spaces.
_PATH_QUOTED = r'<((?>(?:[^<>"\s]|"(?>(?:[^"\\]|\\.)*)")*))>(?: ++(.*))?'
_FROM_QUOTED = re.compile(f"FROM: ?{_PATH_QUOTED}", re.IGNORECASE)
_TO_QUOTED = re.compile(f"TO: ?{_PATH_QUOTED}", re.IGNORECASE)
_SOURCE_ROUTE = re.compile(r"@[^\s:@,]+(?>(?:,@[^\s:@,]+)*):")
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_SIZE = re.compile(r"[0-9]{1,20}")
_XTEXT = re.compile(r"(?>(?:[!-*,-<>-~]|\+[0-9A-F]{2})*)")
_XTEXT_HEX = re.compile(rb"\+([0-9A-F]{2})")
_NOT_XCHAR = re.compile(rb"[^!-*,-<>-~]")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]+")
# RFC 6533 section 3: utf-8-addr-xtext and utf-8-addr-unitext
_UTF8_ADDRESS = re.compile(r"(?>(?:[!-*,-<>-\[\]-~\u00a0-\U0010ffff]|\\x\{[0-9A-F]{2,6}\})*)")
_UTF8_HEX = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_NOT_QCHAR = re.compile(r"[^!-*,-<>-\[\]-~]")
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


@lru_cache(maxsize=256)  # most clients send from few addresses; what is refused is not kept
def parse_mail(arg: str) -> MailCommand:
    """Read `FROM:<ann@b.example> SIZE=100 …`; raises Refused with the reply to give."""
    match = _FROM.fullmatch(arg) or _FROM_QUOTED.fullmatch(arg)
    if match is None:
        raise _syntax("write MAIL FROM:<address> or MAIL FROM:<>, then the parameters")
    path, parameters = match.groups()
    values = _values("MAIL", parameters, _MAIL_PARAMETERS) if parameters else {}
    if not arg.isascii() and not values.get("smtputf8"):
        raise _needs_smtputf8()
    sender = _mailbox(path, "5.1.7", "invalid_sender").address if path else ""
    return MailCommand(sender, **values)


def parse_rcpt(arg: str, *, smtputf8: bool = False) -> RcptCommand:
    """Read `TO:<ann@b.example> NOTIFY=NEVER …`; raises Refused with the reply to give.

    `smtputf8` tells whether the MAIL of this transaction said SMTPUTF8: without it the command must be ASCII.
    """
    match = _TO.fullmatch(arg) or _TO_QUOTED.fullmatch(arg)
    if match is None:
        raise _syntax("write RCPT TO:<address>, then the parameters")
    if not smtputf8 and not arg.isascii():
        raise _needs_smtputf8()
    path, parameters = match.groups()
    bare = path.lower() == "postmaster"  # the one address that needs no domain, RFC 5321 section 4.5.1
    address = Mailbox(path, path, "") if bare else _mailbox(path, "5.1.3", "invalid_recipient")
    values = _values("RCPT", parameters, _RCPT_PARAMETERS) if parameters else {}
    return RcptCommand(address, **values)


def _mailbox(path: str, enhanced: str, name: str) -> Mailbox:
    if path.startswith("@"):  # accepted and ignored, RFC 5321 section 3.6.1
        route = _SOURCE_ROUTE.match(path)
        path = path[route.end() :] if route else path
    try:
        return parse_mailbox(path)
    except ValueError as problem:
        raise Refused(501, enhanced, f"bad address: {problem}", name=name) from None


def _values(command: str, text: str, known: "_Table") -> dict[str, Any]:
    """Read `SIZE=100 BODY=7BIT` into fields of the command. Each may be given once; what is not known is refused."""
    values: dict[str, Any] = {}
    for word in text.split():
        keyword, _, value = word.partition("=")
        keyword = keyword.upper()
        if keyword not in known:
            shown = f"parameter {keyword}" if _KEYWORD.fullmatch(keyword) else "this parameter"
            raise Refused(555, "5.5.4", f"{command}: {shown} is not known here, leave it out", name="unknown_parameter")
        field, take = known[keyword]
        if field in values:
            raise _bad_value(f"{keyword} is given twice: give it once")
        values[field] = take(value)
    return values


def _size(value: str) -> int:
    if not _SIZE.fullmatch(value):
        raise _bad_value("SIZE is a number of bytes, 1 to 20 digits")
    return int(value)


def _body(value: str) -> str:
    body = value.upper()
    if body not in ("7BIT", "8BITMIME"):
        raise _bad_value("BODY is 7BIT or 8BITMIME")
    return body


def _smtputf8(value: str) -> bool:
    if value:
        raise _bad_value("SMTPUTF8 has no value")
    return True


def _require_tls(value: str) -> bool:
    if value:
        raise _bad_value("REQUIRETLS has no value")
    return True


def _ret(value: str) -> str:
    ret = value.upper()
    if ret not in ("FULL", "HDRS"):
        raise _bad_value("RET is FULL or HDRS")
    return ret


def _envid(value: str) -> str:
    # Decoded it goes into a header of the report: nothing but printable ASCII, RFC 3461 section 4.4.
    decoded = _xtext_value("ENVID", value, MAX_ENVID)
    if not decoded.isascii():
        raise _bad_value("ENVID is printable ASCII, encoded as xtext (RFC 3461)")
    return decoded


def _auth(value: str) -> str:
    return "" if value == "<>" else _xtext_value("AUTH", value, MAX_AUTH)


def _notify(value: str) -> str:
    notify = value.upper()
    if notify == "NEVER":
        return notify
    wishes = notify.split(",")
    if not _NOTIFY.issuperset(wishes):
        raise _bad_value("NOTIFY is NEVER alone, or SUCCESS, FAILURE and DELAY with commas between")
    return ",".join(dict.fromkeys(wishes))


def _orcpt(value: str) -> str:
    kind, semicolon, address = value.partition(";")
    if not semicolon or not _ADDRESS_TYPE.fullmatch(kind) or not address:
        raise _bad_value("ORCPT is a type, a semicolon and an address, as in rfc822;ann@example.com")
    kind = kind.lower()
    if kind == "utf-8":
        return f"{kind};{_utf8_address(address)}"
    return f"{kind};{_xtext_value('ORCPT', address, MAX_ORCPT)}"


def _utf8_address(text: str) -> str:
    if len(text) > MAX_ORCPT:
        raise _bad_value(f"ORCPT is longer than {MAX_ORCPT} characters")
    decoded = ""
    if _UTF8_ADDRESS.fullmatch(text):
        decoded = _UTF8_HEX.sub(lambda match: _character(int(match[1], 16)), text)
    if not decoded.isprintable() or not decoded:
        raise _bad_value("the utf-8 address of ORCPT is not encoded as in RFC 6533 section 3")
    return decoded


def _character(point: int) -> str:
    return chr(point) if point <= 0x10FFFF else "\0"  # refused by the caller: not printable


def _xtext_value(keyword: str, value: str, longest: int) -> str:
    if len(value) > longest:
        raise _bad_value(f"{keyword} is longer than {longest} characters")
    try:
        decoded = xtext_decode(value)
    except ValueError:
        decoded = ""
    if not decoded.isprintable() or not decoded:
        raise _bad_value(
            f"{keyword} is printable text encoded as xtext (RFC 3461): +2B for +, +3D for =, +20 for a space"
        )
    return decoded


_Table = dict[str, tuple[str, Callable[[str], Any]]]
_MAIL_PARAMETERS: _Table = {
    "SIZE": ("size", _size),
    "BODY": ("body", _body),
    "SMTPUTF8": ("smtputf8", _smtputf8),
    "RET": ("ret", _ret),
    "ENVID": ("envid", _envid),
    "AUTH": ("auth", _auth),
    "REQUIRETLS": ("require_tls", _require_tls),
}
_RCPT_PARAMETERS: _Table = {"NOTIFY": ("notify", _notify), "ORCPT": ("orcpt", _orcpt)}


def _syntax(advice: str) -> Refused:
    return Refused(501, "5.5.2", f"syntax error: {advice}", name="invalid_syntax")


def _bad_value(advice: str) -> Refused:
    return Refused(501, "5.5.4", advice, name="invalid_parameter")


def _needs_smtputf8() -> Refused:
    text = "the address is not ASCII: say SMTPUTF8 in MAIL, or use an ASCII address"
    return Refused(553, "5.6.7", text, name="smtputf8_required")


# ---- xtext (RFC 3461 section 4) and its kin of RFC 6533


def xtext_decode(text: str) -> str:
    """Return what `text` encodes; raises ValueError when it is no xtext, or not UTF-8 inside."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext (RFC 3461 section 4)")
    if "+" not in text:
        return text
    return _XTEXT_HEX.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode()).decode()


def xtext_encode(text: str) -> str:
    """Return `text` as xtext: printable ASCII without space, `+` and `=`; other bytes of its UTF-8 as `+HH`."""
    return _NOT_XCHAR.sub(lambda match: b"+%02X" % ord(match[0]), text.encode()).decode()


def orcpt_encode(orcpt: str) -> str:
    """Return the value for ORCPT of a decoded `type;address`, in ASCII, so that it may be said to any host with DSN."""
    kind, _, address = orcpt.partition(";")
    if kind == "utf-8":
        return f"{kind};" + _NOT_QCHAR.sub(lambda match: rf"\x{{{ord(match[0]):02X}}}", address)
    return f"{kind};{xtext_encode(address)}"


# ---- content


def dot_stuff(content: bytes, *, head: bytes = b"") -> bytes:
    """Return what to write after the 354: `content` with its dots doubled, and the line with the lone dot.

    `content` has CRLF line ends only (`line_problem` said None); its last line gets one when it lacks it.
    `head`: header fields of ours, which stand before it. That there is nothing to double is not believed of anybody: a
    line with a lone dot that is missed makes the rest of the mail commands.
    """
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    first = b"." if content.startswith(b".") else b""
    last = b".\r\n" if not content or content.endswith(b"\r\n") else b"\r\n.\r\n"
    return b"".join((head, first, stuffed, last))


def dot_unstuff(data: bytes) -> bytes:
    """Return the content of what came after the 354, with or without the final line with the lone dot."""
    if data.endswith(b"\r\n.\r\n"):
        data = data[:-3]
    elif data == b".\r\n":
        return b""
    data = data.replace(b"\r\n.", b"\r\n")
    return data[1:] if data.startswith(b".") else data


_ALL_BUT_LINE_ENDS = bytes(byte for byte in range(256) if byte not in b"\r\n\0")


def line_problem(content: bytes) -> str | None:
    """Say what makes `content` unfit for SMTP and where: a bare LF, a bare CR, a NUL. None: every line ends in CRLF."""
    # A table look-up for one byte in three classes and a search for pairs take 1.1 ns a byte; a regular expression 14.
    interesting = len(content.translate(None, _ALL_BUT_LINE_ENDS))
    return None if interesting == 2 * content.count(b"\r\n") else _first_problem(content)


_PROBLEM = re.compile(rb"(?<!\r)\n|\r(?!\n)|\0")
_PROBLEM_NAMES = {b"\n": "a bare LF", b"\r": "a bare CR", b"\0": "a NUL byte"}


def _first_problem(content: bytes) -> str:
    match = next(_PROBLEM.finditer(content))
    line = content.count(b"\n", 0, match.start()) + 1
    return f"{_PROBLEM_NAMES[match[0]]} in line {line}"
