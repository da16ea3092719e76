"""Route, sign and send."""
