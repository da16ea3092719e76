"""What the API does with templates that takes more than the database: compiling, preparing, trying out."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from time import thread_time
from typing import Any, TypeVar

from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.contexts import SAMPLE, of_person, with_variables
from mailerd.campaigns.templates.preview import Preview, preview
from mailerd.campaigns.templates.rendering import Prepared, PreparedCache
from mailerd.campaigns.templates.store import Source, TemplateStore, Version
from mailerd.campaigns.templates.values import CompiledTemplate
from mailerd.db import Pool

COMPILERS = 1  # at a time in one process: compiling is work for a processor, and mail goes first
T = TypeVar("T")
PER_TENANT = 4  # that are compiling or wait for it


class TooManyError(Exception):
    """The tenant has enough under way; later there is room again."""


class TemplateDesk:
    """`store` is the database. All slow work is done in threads."""

    def __init__(self, pool: Pool) -> None:
        self.store = TemplateStore(pool)
        self._prepared = PreparedCache()
        self._threads = asyncio.Semaphore(COMPILERS)
        self._under_way: Counter[str] = Counter()  # by tenant

    async def compiled(self, tenant: str, source: Source) -> CompiledTemplate:
        """Raises `TemplateError`, `TooManyError`."""
        return await self.in_thread(
            tenant,
            compile_template,
            source.subject,
            source.html_content,
            source.text_content,
            source.format,
            source.variables,
        )

    async def in_thread(self, tenant: str, function: Callable[..., T], *args: Any) -> T:
        """Slow work, when it is its turn. Raises `TooManyError`.

        A thread cannot be broken off: whoever waits may go, and the next one begins only when this one has ended.
        """
        if self._under_way[tenant] >= PER_TENANT:
            raise TooManyError(tenant)

        async def work() -> T:
            return await asyncio.to_thread(function, *args)

        self._under_way[tenant] += 1
        task: asyncio.Task[T] | None = None
        try:
            await self._threads.acquire()
            task = asyncio.create_task(work(), name="template work")
            task.add_done_callback(lambda _: self._ended(tenant))
            return await asyncio.shield(task)
        finally:
            if task is None:
                self._leave(tenant)

    def _ended(self, tenant: str) -> None:
        self._threads.release()
        self._leave(tenant)

    def _leave(self, tenant: str) -> None:
        self._under_way[tenant] -= 1
        if not self._under_way[tenant]:
            del self._under_way[tenant]

    async def prepared(self, tenant: str, version: Version) -> Prepared:
        """Ready to be rendered; the last ones are kept."""
        found = self._prepared.get(version.id)
        if found is None:
            found = await self.in_thread(tenant, Prepared, version.compiled)
            self._prepared.put(version.id, found)
        return found

    async def context(self, tenant: str, variables: Mapping[str, Any], contact_id: int | None) -> dict[str, Any] | None:
        """Variables of that contact, or of a made-up one, and above them those given; None: there is no such contact.

        Raises ValueError for variables that are none.
        """
        base = SAMPLE
        if contact_id is not None:
            people = await self.store.people(tenant, [contact_id])
            if not people:
                return None
            base = of_person(people[0])
        return with_variables(base, variables)

    async def preview(self, tenant: str, version: Version, context: Mapping[str, Any]) -> Preview:
        """Raises `TooManyError`."""
        prepared = await self.prepared(tenant, version)
        return await self.in_thread(tenant, preview, prepared, context, thread_time)
