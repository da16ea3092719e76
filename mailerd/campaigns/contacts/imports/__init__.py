"""Contacts by the million, from files: each row is taken or refused, once, whatever dies on the way.

A file is stored first (`receiving`), so that any node may go on with it. Then one importer of all nodes works on it, a
part of the file in each transaction (`importer`), which moves the contacts, the counts and the place in the file
together: after kill -9 it goes on where it was, and no row is taken twice or left out.

Of several rows with one address in a file the last counts, cell by cell; with mode skip the first. An empty cell
changes nothing. No import gives a subscription back: what is suppressed or has left a list stays so.
"""
