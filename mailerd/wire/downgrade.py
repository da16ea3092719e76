"""8-bit content made 7-bit, for a host without 8BITMIME (RFC 6152 section 3). To be done before signing."""

import binascii
from email import message_from_bytes
from email.generator import BytesGenerator
from email.message import Message
from email.policy import Compat32
from io import BytesIO

POLICY = Compat32(linesep="\r\n", max_line_length=0, cte_type="8bit")  # 0: header lines stay as they are folded
PLAIN_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})
SEALED = frozenset({"multipart/signed", "multipart/encrypted"})  # a changed byte breaks them


def downgrade(content: bytes) -> bytes | None:
    """`content` with text parts in quoted-printable and other parts in base64 where they have 8-bit bytes.

    None when that cannot be: 8-bit headers (they need SMTPUTF8), signed or encrypted content, a part that says it is
    encoded and is not. 7-bit content comes back unchanged.
    """
    if content.isascii():
        return content
    message = message_from_bytes(content, policy=POLICY)
    parts = list(message.walk())
    if any(part.get_content_type() in SEALED for part in parts):
        return None
    for part in parts:
        if not _make_7bit(part):
            return None
    out = BytesIO()
    BytesGenerator(out, mangle_from_=False, policy=POLICY).flatten(message)
    result = out.getvalue()
    return result if result.isascii() else None


def _make_7bit(part: "Message[str, str]") -> bool:
    encoding = str(part.get("Content-Transfer-Encoding", "")).strip().lower()
    if part.is_multipart():
        if encoding in ("8bit", "binary"):  # what a container may say is 7bit, or what its parts need (RFC 2045 6.4)
            part.replace_header("Content-Transfer-Encoding", "7bit")
        return True
    octets = part.get_payload(decode=True)  # decodes nothing of a plain encoding; str would be read by its charset
    if encoding not in PLAIN_ENCODINGS:
        return str(part.get_payload()).isascii()
    if not isinstance(octets, bytes) or octets.isascii():
        return True
    if part.get_content_maintype() == "text":
        name, text = "quoted-printable", binascii.b2a_qp(octets, istext=True).decode("ascii")
    else:
        name, text = "base64", _base64(octets)
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = name
    if "MIME-Version" not in part and "Content-Type" not in part:
        part["MIME-Version"] = "1.0"
    part.set_payload(text)
    return True


def _base64(octets: bytes) -> str:
    lines = [binascii.b2a_base64(octets[start : start + 57], newline=False) for start in range(0, len(octets), 57)]
    return b"\r\n".join(lines).decode("ascii") + "\r\n"
