"""What comes back and what we tell: bounces, complaints and unsubscribes in, webhooks and sinks out."""
