"""What stands before, after and around an address or a line, by which its place in a report is known."""

import re


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


_HEAD = r"^[\s*>•-]{0,12}"

# A line behind which a copy of our message follows.
COPY_FOLLOWS = re.compile(
    r"^[\s>*#=_-]{0,60}"
    + _any(
        r"(?:this is|below this line is|here is|below is) a copy of (?:the|your)",
        r"(?:the )?(?:original|returned|bounced|undelivered) (?:message|mail|e-mail)(?: (?:header|text|detail))?s?"
        r"(?: follows| attached| below| headers?)?\s*[.:-]{0,60}\s*[>*#=_-]{0,60}$",
        "below (?:this|the next) line is",
        "copy of (?:the )?(?:original )?message",
        "unsent message",
        "returned mail follows",
        "start of returned message",
        "message (?:text|header|contents) follow",
        "your message follows",
        "old message",
        "headers? of the (?:original |source )?(?:message|mail)",
        "the headers? of the original message",
        "original message header",
        "--- forwarded message",
        "ursprüngliche nachricht",
        "kopie der nachricht",
        "message d'origine",
        "mensaje original",
        "messaggio originale",
        "mensagem original",
        "oorspronkelijk bericht",
        "исходное сообщение",
    ),
    re.IGNORECASE,
)

# Before and after an address that a line holds and little else.
ALONE = re.compile(r"^[\s>*•·-]{0,12}(?:to:|recipient:|user:|e-?mail:|address:)?\s*[<\"'(\[]{0,2}$", re.IGNORECASE)
ALONE_AFTER = re.compile(
    r"^[>\"')\]]{0,2}(?:\s*\((?:mailto:)?[^()\s]{1,200}\)|\s*<mailto:[^<>\s]{1,200}>|\s*<[^<>\s]{1,200}>)?"
    r"\s*(?:$|:|\.\.\.|;|,\s|\s\(|\son\s|\s[-=]|\s{2,})"
)

# Before an address that has a label of any language.
LABELLED = re.compile(_HEAD + r"[^\s:@<>][^:@<>]{0,40}\s?[::]\s*[<\"'\[(]?$")

# Before an address that nothing but a recipient can be.
RCPT = re.compile(r"rcpt to:?\s*<?$|\bsmtp=$|final-recipient:\s*(?:rfc822;)?\s*<?$", re.IGNORECASE)

# Before an address that is named as the one to which something was sent.
NAMED = re.compile(
    _any(
        "recipients?",
        "rcpt",
        "addressee",
        "intended for",
        "addressed to",
        r"deliver(?:ed|y|ing)?(?: the message| your message| it| mail)? (?:to|for)",
        "(?:sent|message|mail) to",
        "send (?:it |this |your message |a message |mail )?to",
        "user|account|mailbox|address(?:es)?",
        "adress[ea]|empfänger|empfaenger",
        "destinataires?|destinatari[oa]s?|dirección|indirizzo|endereço",
        "ontvanger|geadresseerde",
        r"adresat\w*|odbiorc\w*|adres\w*",
        r"адресат\w*|получател\w*|адрес\w*|пользовател\w*",
        r"alıcı\w*|mottagar\w*|modtager\w*|mottaker\w*|vastaanottaja\w*|příjemc\w*",
        "宛先|受信者|收件人|地址|邮箱|用户|수신자|致|给|給",
        r"\b(?:à|a|an|para|to|for|per|aan|do|till|til)",
    )
    + r"\W{0,6}$",
    re.IGNORECASE,
)

# After an address of which something is said that a system says of recipients.
FAILED_AFTER = re.compile(
    r"^[>\"')\]]{0,2}\W{0,4}"
    + _any(
        "could|can ?not|can't|has|is|was|were|does|doesn|did|not|user|unknown|no such|invalid|failed|undeliver",
        "over quota|mailbox|account|address|rejected|unrout",
        "konnte|existiert|ist|n'|no |non |não|nicht|kan|nie|не",
        "が|は|に|さん|の|不|无|無",
    ),
    re.IGNORECASE,
)

# Before an address that is somebody else's: the sender's, or whom to ask.
NOT_MEANT = re.compile(
    r"(?:^|[\s<(\[,;])"
    + _any(
        "from|sender|reply-to|return-path|mail from|message-id|message id|in-reply-to|references|originator",
        "contact|e-?mail us|write to|ask|help|support|questions?|assistance|administrator|postmaster",
        "forward(?:ed)? (?:to|this)|send (?:a )?(?:copy|mail|email|e-mail)|notify",
        "please (?:send|contact|e-?mail|notify|forward)|report (?:this|it|abuse) to|report to",
        "written by|sent by|by|on behalf of|you sent|date|id|cc",
        "von|de|da|absender|expéditeur|remitente|mittente|remetente|afzender",
        r"отправител\w*|от|発信者|送信者|发件人|寄件者",
        "kontakt|contactez|contacte|contattare|wenden sie sich an",
    )
    + r"\s*[:=]?\s*[<(\"'\[]?\s*(?:mailto:)?$",
    re.IGNORECASE,
)

# Addresses of those who help.
HELPERS = re.compile(
    _any(
        "postmaster|mailer-daemon|abuse|support|helpdesk|hostmaster|webmaster|noreply|no-reply|info-?desk|help",
        r"mail-?admin|delist\w*|unblock|removal\w*|spam\w*",
    )
    + "@",
    re.IGNORECASE,
)

# Lines that sum up our message: to whom, and beside it of what and when.
TO_LINE = re.compile(
    _HEAD + _any("to|cc|an|à|para|a|aan|do|кому|till|til|kime|宛先|收件人") + r"\s?[::]",
    re.IGNORECASE,
)
SUMMARY_LINE = re.compile(
    _HEAD
    + _any(
        "subject|sent|betreff|gesendet|objet|envoyé|asunto|enviado|oggetto|inviato|assunto|onderwerp|verzonden",
        "temat|wysłano|тема|ämne|skickat|emne|konu|件名|主题|主旨",
    )
    + r"\s?[::]",
    re.IGNORECASE,
)

# The start of what companies hang on to all that leaves them.
FOOTER = re.compile(
    r"^\s*"
    + _any(
        r"-- $|_{20,}\s*$|\*{20,}\s*$",
        ".{0,12}this (?:e-?mail|message) (?:has been|and any|is confidential|is intended|contains)",
        ".{0,12}(?:disclaimer|confidentiality|scanned (?:for|by))",
    ),
    re.IGNORECASE,
)

# A line of signs only.
RULE = re.compile(r"^[\s*=_#~+-]{4,}$")
