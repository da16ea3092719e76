"""Segments: contacts by what is true of them now, as a tree of conditions.

`conditions` are what is asked, `parsing` reads them from JSON, `compiling` makes SQL of them; `store` keeps segments,
`counting` tells how many contacts one has: an estimate at once, the exact number in steps.
"""
