"""What somebody who means harm may try, and where it is shown that it does not help.

| attack | shown in |
| --- | --- |
| a client that drips: commands, DATA, BDAT chunks, AUTH, TLS handshakes, HTTP headers and bodies | test_slow |
| one that talks without end, or does not read | test_slow |
| 10,000 connections at once, by SMTP and by HTTP | test_crowds |
| guessing passwords and keys; finding out who is there | test_guessing |
| relaying by a stranger | test_relaying; tests/intake/test_smtp_server |
| sending as somebody else with a limited credential | tests/review/test_adversary; tests/intake/test_submission |
| reading or changing what is another tenant's; doing without the scope | tests/web/test_conventions, test_server |
| a second message inside one that we take | tests/intake/test_smuggling, test_inbound |
| a second message inside one that we send | test_smuggling_out |
| a second HTTP request inside one; floods of header fields, URLs without end | test_smuggling_http |
| headers, forms and packed bodies that want to be large | test_bombs |
| bombs in bounces, complaints, DMARC and TLS reports | tests/feedback/test_reading_bounds, test_aggregate_bounds |
| templates, HTML and MJML that want to run for ever | tests/campaigns/templates/test_hostile |
| replies of a peer that are no replies | tests/review/test_adversary |
| any bytes for any parser | test_parsers, `scripts/fuzz` |
| texts that take a regular expression for ever | test_patterns |
| whatever the OpenAPI document allows, and what it does not | tests/web/test_schemathesis |
"""
