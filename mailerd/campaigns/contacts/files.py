"""Files of contacts, in and out, as the API has them."""

from collections.abc import Callable
from dataclasses import dataclass

from mailerd.campaigns.contacts.exporting import ExportStore
from mailerd.campaigns.contacts.imports.store import ImportStore


@dataclass(frozen=True, slots=True)
class ContactFiles:
    """`most` is how many bytes a file may have now: campaigns.max_import."""

    imports: ImportStore
    exports: ExportStore
    most: Callable[[], int]
