"""Bytes and values: formats and dialogues without socket, clock or SQL.

Regular expressions that strangers feed are possessive or atomic, so that they cannot go back and try again for ever. A
repeated group is written `(?>(?:…)*)` and never `(?:…)*+`, which Python 3.11.0 to 3.11.4 match wrongly.
"""
