"""Contacts: people, the lists they are on, their tags and fields, and what they have agreed to.

A contact is one address of one tenant. Whether it may be mailed is never stored here: `status` derives it from the
suppressions that bind the address. What the person agreed to and took back stands in the ledger of consents.
"""
