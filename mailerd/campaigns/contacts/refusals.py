"""What the stores of contacts do not do, as refusals that clients can branch on. Pure."""

from collections.abc import Sequence

from mailerd.campaigns.contacts.fields import FieldProblem
from mailerd.errors import Refused


def refused(name: str, text: str, *, http: int = 409, field: str = "") -> Refused:
    """`name` is for programs, `text` a sentence that says what to do, `field` where in the body the cause stands."""
    return Refused(550, "5.7.0", text, name=name, http=http, field=field)


def unknown(what: str) -> Refused:
    """404: it is not there, or another tenant's, which is the same."""
    return refused("not_found", f"There is no such {what} of yours.", http=404)


class ContactExistsError(Refused):
    """The address is another contact's already: `contact_id`."""

    def __init__(self, contact_id: int) -> None:
        text = "There is a contact of this address already; change that one."
        super().__init__(550, "5.7.0", text, name="duplicate_contact", http=409, field="email")
        self.contact_id = contact_id


class FieldsRefusedError(Refused):
    """Custom fields that do not fit what is defined: `problems` says which and why."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        super().__init__(550, "5.7.0", problems[0].detail, name="invalid", field="custom_fields")
        self.problems = tuple(problems)
