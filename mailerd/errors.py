"""The exception family. A 550 from a peer is a verdict, a value; these are for surprises and for refusals of ours."""

from dataclasses import dataclass


class MailerdError(Exception):
    """The root of all errors of this package."""


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing wrong in a configuration file, or with no file ("") of all.

    `line` is 1-based, 0 when unknown; `key` is a dotted path.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file else ""
        return f"{place}{self.key}: {self.message}"


class ConfigError(MailerdError):
    """The configuration cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: list[ConfigProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Refused(MailerdError):  # noqa: N818 - nothing went wrong
    """Ours to give: what was asked cannot be done, and the asker should know why.

    `code` and `enhanced` are the SMTP reply (RFC 5321, RFC 3463), `name` the stable snake_case word that HTTP clients
    branch on, `text` is public: it says what to do and holds no secret. `field` points into a JSON body, if one did it.
    """

    def __init__(self, code: int, enhanced: str, text: str, *, name: str, field: str = "", http: int = 0) -> None:
        super().__init__(f"{code} {enhanced} {text}")
        self.code = code
        self.enhanced = enhanced
        self.text = text
        self.name = name
        self.field = field
        self.http = http or (422 if code >= 500 else 429)


class Unavailable(MailerdError):  # noqa: N818
    """Our own trouble (database away, disk full, no memory): 451 4.3.0 in SMTP, 503 in HTTP. Nothing was accepted."""


class DatabaseError(MailerdError):
    """The database cannot be started or used; the text says what to do."""


class LocalProtocolError(MailerdError):
    """We are about to break a protocol: a bug of ours, or content that cannot be sent as it is."""


class RemoteProtocolError(MailerdError):
    """The peer broke the protocol."""
