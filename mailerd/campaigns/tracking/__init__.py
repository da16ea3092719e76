"""What readers do: opens and clicks, from the request to the event.

A hit is answered at once (`service.Tracker`, by `wire.tracking` alone), written to a file of the worker before that
(`files`, `folding`), stored by its background task (`storing`), and told as an event when it is known who made it
(`classifier`, by the rules in `actors`): no answer waits for the database, and no hit is counted twice.
What is tracked is campaigns' mail (`campaigns.mailing`) and messages that ask for it (`marking`).
"""
