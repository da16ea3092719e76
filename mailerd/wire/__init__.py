"""Bytes and values: formats and dialogues without socket, clock or SQL."""
