"""What campaign mail is made from: Jinja in a sandbox, HTML or MJML, compiled once, rendered per contact."""
