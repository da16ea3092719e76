"""The two languages of templates: one for HTML, which escapes, and one for text and subjects, which does not."""

from mailerd.campaigns.templates.filters import install
from mailerd.campaigns.templates.sandbox import Language

HTML = install(Language(html=True))
TEXT = install(Language(html=False))
