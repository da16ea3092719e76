"""What rendering one mail costs: a newsletter of 50 kB with 20 variables and 15 links, each of them tracked.

Each mail is for another contact, with other links and another pixel, as campaigns make them; tracked links are signed.
"""

import time
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import machine
from benchmarks.report import Results, machine_line
from mailerd.campaigns.templates.compiling import compile_template
from mailerd.campaigns.templates.rendering import Prepared
from mailerd.wire.tracking import Tracking

NEWSLETTER = Path(__file__).parent / "data" / "newsletter.html"
SUBJECT = "{{ contact.first_name | default('Good morning') }}, this is {{ campaign.name }}"
MEAN, P99 = 1.0, 100.0  # milliseconds that are asked for
TAGS: tuple[list[str], ...] = (["vip", "garden"], ["garden"], [])


def run(work: Path, results: Results, *, count: int) -> bool:
    """True when a mail takes less than a millisecond in the mean and less than 100 in the 99th percentile."""
    described = machine.describe(work)
    results.line(machine=described)
    results.text(machine_line(described))
    began = time.perf_counter()
    compiled = compile_template(SUBJECT, NEWSLETTER.read_text(), "")
    compiled_in = (time.perf_counter() - began) * 1000
    began = time.perf_counter()
    prepared = Prepared(compiled)
    prepared_in = (time.perf_counter() - began) * 1000
    times, size = _render(prepared, count)
    facts = {
        "mails": count,
        "html": size,
        "variables": len(compiled.used),
        "links": len(compiled.links),
        "compile_ms": round(compiled_in, 1),
        "prepare_ms": round(prepared_in, 1),
        "mean_ms": round(mean(times), 3),
        "median_ms": round(median(times), 3),
        "p99_ms": round(times[int(len(times) * 0.99)], 3),
        "worst_ms": round(times[-1], 3),
    }
    results.line(**facts)
    results.table("Rendering one mail", ["", "value"], [[name, f"{value:,}"] for name, value in facts.items()])
    return mean(times) < MEAN and times[int(len(times) * 0.99)] < P99


def _render(prepared: Prepared, count: int) -> tuple[list[float], int]:
    """Milliseconds of each mail, sorted, and the bytes of the HTML of the last."""
    tracking = Tracking(b"a secret of thirty-two bytes, or so")
    times, size = [], 0
    for n in range(count):
        context = _context(n)
        began = time.perf_counter()

        def link(slot: int, url: str, n: int = n) -> str:
            return "https://t.example.com/c/" + tracking.click_token(n, 17, n, slot, url)

        pixel = "https://t.example.com/o/" + tracking.open_token(n, 17, n)
        mail = prepared.render(context, link=link, pixel=pixel)
        times.append((time.perf_counter() - began) * 1000)
        size = len(mail.html.encode())
    return sorted(times), size


def _context(n: int) -> dict[str, Any]:
    fields = {
        "city": f"City {n}",
        "country": "Norway",
        "teaser": "what grows in March",
        "club": "green",
        "level": "gold",
        "points": n,
        "store": "Harbour Street",
        "favourite": "pears & <apples>",
        "dog": "bello",
        "saved": ["Tomatoes", "Bread", "Walks & talks"][: n % 4],
    }
    return {
        "contact": {
            "contact_id": f"con_{n}",
            "email": f"reader{n}@example.com",
            "first_name": f"Ann {n}",
            "last_name": "O'Hara",
            "phone": "",
            "tags": TAGS[n % 3],
            "custom_fields": fields,
            "time_zone": "Europe/Oslo",
            "created_at": "2024-03-01T09:00:00+00:00",
        },
        "custom_fields": fields,
        "campaign": {"campaign_id": "cmp_17", "name": "The Garden Post", "subject": "Spring"},
        "unsubscribe_url": f"https://t.example.com/u/{n}",
        "preferences_url": f"https://t.example.com/p/{n}",
        "view_url": "",
        "postal_address": "Garden Post, 1 Orchard Road",
        "sender_name": "The Garden Post",
    }
