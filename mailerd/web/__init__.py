"""HTTP: parse, call, render; no SQL, no decisions."""
