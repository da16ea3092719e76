"""The words by which people and systems know a bounce, a delay and an automatic reply, in many languages.

All in the form that `folded` gives: case folded, white space as single spaces, apostrophes straight.
"""

import re

MAX_FOLDED = 12_288  # characters of a text that are searched for phrases

_SPACES = re.compile(r"\s+")


def folded(text: str, longest: int = MAX_FOLDED) -> str:
    """The start of a text, for phrases to be looked for in it."""
    return _SPACES.sub(" ", text[:longest]).casefold().replace("’", "'").replace("´", "'").replace("`", "'")


def says(text: str, phrases: tuple[str, ...]) -> bool:
    """Whether a folded text has one of the phrases."""
    return any(phrase in text for phrase in phrases)


def first_place(text: str, phrases: tuple[str, ...]) -> int:
    """Where the first of the phrases stands in a folded text, -1 for nowhere."""
    places = [at for phrase in phrases if (at := text.find(phrase)) >= 0]
    return min(places, default=-1)


# That mail was not delivered: in subjects, and in what systems write to people.
FAILED = (
    # English
    "undeliver", "delivery failure", "delivery failed", "delivery has failed", "delivery status notification",
    "delivery-failure", "failed delivery", "failure delivery", "delivery fail", "failure notice", "failed mail",
    "returned mail", "mail returned", "returned to sender", "return to sender", "returned email", "message returned",
    "delivery notification", "mail delivery system", "mail delivery subsystem", "mail delivery problem",
    "not be delivered", "not be sent", "not deliver", "non-delivery", "nondelivery", "non delivery", "nondeliverable",
    "not been delivered", "unable to deliver", "unable to be delivered", "unable to send", "delivery problem",
    "delivery error", "delivery incomplete", "delivery report", "delivery unsuccessful", "mail system error",
    "mail failure", "mail error", "could not send", "couldn't be delivered", "couldn't deliver", "wasn't delivered",
    "was not delivered", "user unknown", "unknown user", "address not found", "message blocked", "message rejected",
    "mail rejected", "rejected mail", "rejected message", "message not accepted", "mail refused", "was rejected",
    "has been rejected", "had permanent fatal errors", "did not reach", "failed recipient", "failed address",
    "following address failed", "following addresses failed", "address(es) failed", "failed permanently",
    "permanent failure", "permanent error", "fatal error", "qmail-send program", "no such user",
    "does not exist here", "bounced", "bounce:", "bounce message", "mailbox is full", "mailbox full", "over quota",
    "quota exceeded", "mailbox unavailable", "no such mailbox", "mdaemon notification", "dead letter",
    "invalid recipient", "recipient rejected", "was aborted", "unrouteable", "unroutable", "mail could not",
    "message could not", "unknown recipient", "undelivrable", "cannot deliver", "can't be delivered",
    "not reach the following", "returning message to sender", "returning your message",
    "your message is being returned", "mail loop", "recipient's mailbox is full", "message was not accepted",
    "no valid recipient", "delivery attempts failed", "user doesn't have a", "address rejected", "message refused",
    "unknown local", "user not found", "undeliverable mail", "did not receive", "mail was blocked", "was not sent",
    "could not be found", "problem delivering", "problems delivering", "unsuccessful delivery",
    "delivery to the following", "giving up on", "intended recipient", "not a valid user", "not a valid",
    "invalid user", "invalid address", "unknown address", "no mailbox", "delivery of your message",
    "has been returned", "automatically rejected", "is being returned", "processing error", "mail status report",
    "have been rejected", "delivery rejected",
    # German
    "unzustellbar", "nicht zugestellt", "zustellung fehlgeschlagen", "nicht zustellbar", "zustellfehler",
    "zustellungsfehler", "fehler bei der zustellung", "übermittlung fehlgeschlagen", "nicht zustellen",
    "benachrichtigung zum übermittlungsstatus", "zustellstatus", "zustellungsstatus", "nicht erreicht",
    "konnte nicht gesendet", "nicht übermittelt", "rückläufer", "fehlgeschlagene zustellung", "nicht ausgeliefert",
    "existiert nicht", "postfach ist voll", "postfach voll", "fehler bei der nachrichtenzustellung",
    "nachricht wurde abgelehnt", "fehlerhafter e-mail-versand", "konnte nicht versendet", "nicht gefunden werden",
    # French
    "non remis", "non délivr", "non distribu", "échec de la remise", "échec de remise", "échec de la distribution",
    "échec de distribution", "notification d'état de remise", "notification d'état de la", "avis de non",
    "n'a pas pu être", "n'ont pas pu être", "n'a pu être", "message non", "courrier non", "retour de courrier",
    "retourné à l'expéditeur", "échec de l'envoi", "échec d'envoi", "n'est pas parvenu", "n'a pas été remis",
    "impossible de remettre", "impossible de livrer", "boîte aux lettres est pleine", "n'existe pas",
    "échec de la livraison", "adresse introuvable",
    # Spanish
    "no se puede entregar", "no entregado", "no se pudo entregar", "no se ha podido entregar", "error de entrega",
    "notificación de estado de entrega", "notificación del estado de", "mensaje devuelto", "correo devuelto",
    "entrega fallida", "fallo de entrega", "fallo en la entrega", "error en la entrega", "no entregable",
    "no se pudo enviar", "no se ha entregado", "no llegó a", "no ha podido ser entregado", "no pudo ser entregado",
    "no existe", "buzón está lleno", "buzón lleno", "devuelto al remitente", "no se ha encontrado la dirección",
    "no se encontró la dirección", "no se pudo encontrar", "imposible entregar",
    # Italian
    "non recapitabile", "mancata consegna", "mancato recapito", "non consegnat", "impossibile recapitare",
    "impossibile consegnare", "stato della consegna", "stato del recapito", "non recapitat", "recapito non riuscito",
    "errore di consegna", "consegna fallita", "consegna non riuscita", "non è stato recapitato", "non ha raggiunto",
    "non esiste", "non può essere consegnato", "casella piena", "casella di posta piena", "restituito al mittente",
    "non è stato possibile", "indirizzo non trovato",
    # Portuguese
    "não entregue", "não é possível entregar", "não foi possível entregar", "status de entrega", "estado da entrega",
    "falha na entrega", "falha de entrega", "mensagem devolvida", "devolvida ao remetente", "não foi entregue",
    "não pôde ser entregue", "não pode ser entregue", "erro na entrega", "não atingiu", "não existe",
    "caixa postal cheia", "devolução de mensagem", "não entregável", "endereço não encontrado", "não pude entregar",
    # Dutch
    "onbestelbaar", "niet bezorgd", "niet afgeleverd", "niet worden bezorgd", "bezorging mislukt",
    "aflevering mislukt", "bezorgingsstatus", "afleverstatus", "kan niet worden afgeleverd", "niet bereikt",
    "retour afzender", "bestaat niet", "niet worden afgeleverd", "kon niet bezorgd", "adres niet gevonden",
    "niet besteld",
    # Polish
    "niedostarcz", "nie można dostarczyć", "nie dostarczon", "nie mogła zostać dostarczon", "nie została dostarczon",
    "stanie dostarczenia", "błąd dostarcz", "nie dotarła do", "niemożliwe do dostarczenia", "nie istnieje",
    "zwrot wiadomości", "zwrot poczty", "nie udało się dostarczyć", "nie może zostać dostarczon",
    "nie znaleziono adresu",
    # Russian, Ukrainian
    "недоставлен", "не доставлен", "не удалось доставить", "невозможно доставить", "не может быть доставлено",
    "не было доставлено", "не могло быть доставлено", "не удается доставить", "не удаётся доставить",
    "о состоянии доставки", "ошибка доставки", "недоставк", "сообщение не доставлено", "не найден", "не существует",
    "ошибка при доставке", "сбой доставки", "не доставлено", "письмо не было", "неможливо доставити",
    "не вдалося доставити", "ящик переполнен", "отчет о доставке", "статус доставки",
    # Japanese
    "配信不能", "配信できません", "配送エラー", "配達できません", "送信できません", "配信エラー", "エラーメール",
    "配信に失敗", "送信エラー", "配達不能", "配信状態通知", "届けられません", "届きませんでした", "お届けできません",
    "送信に失敗", "配送できません", "宛先不明", "見つかりません", "配信されませんでした", "配信不可",
    "送信できませんでした", "配送状況", "配信状況",
    # Chinese
    "退信", "无法投递", "无法送达", "未送达", "投递失败", "無法傳遞", "無法投遞", "无法传递", "未传递", "退回",
    "无法发送", "发送失败", "無法送達", "未傳遞", "寄送失敗", "傳送失敗", "传送失败", "不存在", "投遞失敗",
    "传递失败", "無法寄送", "邮件被拒", "传递状态通知", "傳遞狀態通知", "傳送狀態", "退件", "未能送达", "未能傳送",
    # Korean
    "배달되지", "전송 실패", "반송", "배달 실패", "전달되지", "전송되지", "발송 실패", "배달할 수 없", "전달할 수 없",
    "배달 상태", "전송할 수 없", "찾을 수 없",
    # Turkish
    "teslim edilemedi", "iletilemedi", "teslim edilemeyen", "teslim edilemiyor", "gönderilemedi", "iletilemeyen",
    "teslimat durumu", "ulaştırılamadı", "teslim durumu", "ulaşamadı", "teslim edilmedi", "bulunamadı",
    # Swedish, Danish, Norwegian
    "inte leverera", "olevererbar", "leveransstatus", "leverans misslyckades", "misslyckad leverans", "ej levererat",
    "nådde inte", "kunde inte skickas", "har inte levererats", "ikke leveres", "ikke leveret", "ikke levert",
    "uleverbar", "leveringsstatus", "levering mislykkedes", "nåede ikke", "nådde ikke", "ikke afleveres",
    "finns inte", "findes ikke", "finnes ikke", "kunne ikke sendes", "returneret til afsender",
    # Finnish, Estonian
    "ei voi toimittaa", "toimittaminen epäonnistui", "ei voitu toimittaa", "ei toimitettu", "toimitus epäonnistui",
    "toimituksen tila", "ei tavoittanut",
    # Czech, Slovak
    "nedoručiteln", "nelze doručit", "nedoručen", "o stavu doručení", "nebylo doručeno", "nebyla doručena",
    "nemohla být doručena", "nepodařilo se doručit", "neexistuje", "nedalo doručiť",
    # Hungarian, Romanian, Greek, Hebrew, Arabic, Bulgarian, Vietnamese, Thai, Indonesian, Catalan, Croatian
    "kézbesíthetetlen", "nem kézbesíthető", "sikertelen kézbesítés", "kézbesítési", "nem sikerült kézbesíteni",
    "nelivrat", "nu a putut fi livrat", "nelivrabil", "nu poate fi livrat", "nu a fost livrat", "αδύνατη η παράδοση",
    "μη παραδοτέο", "δεν παραδόθηκε", "παράδοσης απέτυχε", "η παράδοση του", "לא ניתן למסור", "לא נמסרה", "ההודעה לא",
    "تعذر التسليم", "تعذر تسليم", "غير قابل للتسليم", "لم يتم تسليم", "недоставимо", "не е доставено",
    "không thể gửi", "không gửi được", "không thể chuyển", "không gửi", "ไม่สามารถส่ง", "ส่งไม่สำเร็จ",
    "tidak terkirim", "gagal terkirim", "tidak dapat dikirim", "gagal dikirim", "no s'ha pogut lliurar",
    "no es pot lliurar", "nije isporučen", "nije moguće isporučiti", "neisporučiv", "ni bilo mogoče dostaviti",
    "nepavyko pristatyti",
)  # fmt: skip

# That it is late, and still tried.
DELAYED = (
    "message delayed", "delivery delayed", "(delayed)", "has been delayed", "is delayed", "mail delayed",
    "delayed mail", "delayed:", "delivery delay", "postponed", "attempts will continue", "continue to be made",
    "this is just a warning", "advisory-only", "will continue trying", "delivery warning", "will be retried",
    "not yet been delivered", "still being retried", "will keep trying", "will continue to",
    "warning: could not send", "warning message only", "do not need to resend", "no action is required on your part",
    "still trying", "temporarily undeliverable", "will try again", "has not been delivered yet",
    "remains in the queue", "has been deferred", "could not yet be delivered", "(delay)", "verzögert",
    "noch nicht zugestellt", "weitere zustellversuche", "remise différée", "retardé", "est retardée",
    "n'a pas encore", "retrasad", "se ha retrasado", "aplazad", "ritard", "atrasad", "adiad", "vertraagd",
    "vertraging", "opóźni", "задерж", "отложен", "遅延", "遅れて", "延迟", "延遲", "延误", "지연", "gecik",
    "försenad", "fördröj", "forsink", "viiväst", "zpožd", "késik", "késés",
)  # fmt: skip

# That it failed for good, whatever is said of delays beside.
GAVE_UP = (
    "permanent error", "permanent failure", "permanently", "giving up", "given up", "gave up", "final report",
    "has expired", "too long", "undeliverable:", "endgültig", "fehlgeschlagen", "définitif", "definitiv",
    "retry timeout exceeded", "could not be delivered for", "message expired", "returning message to sender",
)  # fmt: skip

# That a person is away, or that a machine answers: in subjects and at the start of a text.
AWAY = (
    "awaits moderator approval", "is being held until the list", "held for moderation", "awaiting moderation",
    "out of office", "out of the office", "out-of-office", "automatic reply", "auto reply", "autoreply", "auto-reply",
    "automatically generated reply", "auto response", "autoresponse", "auto-response", "autoresponder",
    "auto responder", "automated reply", "automated response", "automatic response", "automatic answer",
    "auto answer", "vacation", "on holiday", "on leave", "annual leave", "sick leave", "maternity leave",
    "parental leave", "paternity leave", "away from my", "away from the office", "i am away", "i'm away",
    "i am currently away", "currently unavailable", "ooo:", "[ooo]", "ooo -", "i will be back", "i will return",
    "will be out of", "limited access to", "no longer with the", "no longer with our", "no longer works",
    "no longer working", "no longer work ", "no longer employed", "has left the company", "left the company",
    "has left our", "has retired", "am no longer", "is no longer with", "is no longer at", "not in the office",
    "away message", "away notice", "thank you for your email", "thank you for your e-mail",
    "thank you for your message", "thank you for contacting", "thanks for your email", "thanks for contacting",
    "we have received your", "your email has been received", "your message has been received", "my new email address",
    "my email address has changed", "new e-mail address", "this mailbox is not monitored", "mailbox is unattended",
    "is not monitored", "unmonitored", "abwesenheit", "automatische antwort", "abwesend", "außer haus", "ausser haus",
    "nicht im büro", "im urlaub", "in urlaub", "automatische rückantwort", "auto-antwort", "autoantwort",
    "eingangsbestätigung", "nicht mehr im unternehmen", "nicht mehr bei uns", "nicht am arbeitsplatz", "elternzeit",
    "vielen dank für ihre nachricht", "vielen dank für ihre e-mail", "nicht mehr für", "krankheitsbedingt",
    "nicht erreichbar bin", "bin ich wieder", "réponse automatique", "absence du bureau", "absent du bureau",
    "absente du bureau", "en congé", "message d'absence", "je suis absent", "je suis actuellement absent",
    "ne travaille plus", "réponse d'absence", "actuellement en vacances", "absent(e)", "notification d'absence",
    "n'est plus dans l'entreprise", "votre message a bien été reçu", "avis d'absence", "respuesta automática",
    "fuera de la oficina", "fuera de oficina", "estoy ausente", "estaré ausente", "ausencia", "de vacaciones",
    "autorespuesta", "contestación automática", "ya no trabaja", "auto respuesta", "risposta automatica",
    "fuori sede", "fuori ufficio", "sono assente", "assenza", "in ferie", "non lavora più", "risponditore automatico",
    "autorisposta", "resposta automática", "fora do escritório", "estou ausente", "estarei ausente",
    "aviso de ausência", "de férias", "em férias", "não trabalha mais", "já não trabalha", "ausência temporária",
    "automatisch antwoord", "afwezig", "buiten kantoor", "niet op kantoor", "met vakantie", "op vakantie",
    "met verlof", "niet meer werkzaam", "automatische beantwoording", "odpowiedź automatyczna",
    "automatyczna odpowiedź", "poza biurem", "nieobecnoś", "na urlopie", "autoodpowiedź", "nieobecn", "przebywam na",
    "już nie pracuje", "autoresponder", "автоматический ответ", "автоответ", "нет на месте", "в отпуске", "отсутству",
    "нет в офисе", "больше не работает", "автоматична відповідь", "у відпустці", "自動返信", "自動応答", "不在",
    "休暇", "自動送信", "休業", "退職", "自动回复", "自動回覆", "自动答复", "外出", "不在办公室", "休假", "自動答復",
    "自動回復", "已离职", "已離職", "자동 회신", "부재중", "자동 응답", "자동회신", "휴가", "퇴사", "otomatik yanıt",
    "ofis dışında", "otomatik cevap", "izindeyim", "ofiste değil", "yıllık izin", "tatilde", "artık çalışmıyor",
    "autosvar", "frånvaro", "automatiskt svar", "inte på kontoret", "semester", "slutat på", "automatisk svar",
    "fraværende", "ikke på kontoret", "fravær", "på ferie", "jobber ikke lenger", "arbejder ikke længere",
    "automaattinen vastaus", "poissa", "lomalla", "poissaolo", "automatická odpověď", "automatická odpoveď",
    "mimo kancelář", "nepřítomn", "dovolen", "automatikus válasz", "házon kívül", "szabadságon", "αυτόματη απάντηση",
    "εκτός γραφείου", "εκτός γραφειου", "מענה אוטומטי", "תשובה אוטומטית", "מחוץ למשרד", "رد تلقائي", "خارج المكتب",
    "الرد التلقائي", "răspuns automat", "în concediu", "trả lời tự động", "ตอบกลับอัตโนมัติ", "balasan otomatis",
    "автоматичен отговор", "automatski odgovor", "samodejni odgovor", "resposta automàtica",
)  # fmt: skip

# In subjects only: words that are too common in texts.
AWAY_SUBJECTS = (
    *AWAY, "away:", "absence", "absent", "ausente", "assente", "urlaub", "vacances", "vacaciones", "férias", "ferie",
    "holiday", "auto:", "autoreply:", "read:", "gelesen:", "lu :", "leído:", "letto:", "lida:", "gelezen:",
    "read receipt", "return receipt", "lesebestätigung", "confirmation de lecture", "acknowledg", "ticket",
    "request received", "case #", "thank you for",
)  # fmt: skip

# That the sender shall prove that he is a person.
CHALLENGES = (
    "bestätigen sie ihre nachricht", "antworten sie auf diese nachricht", "confirm your e-mail to",
    "please confirm that you sent", "confirm your message", "please confirm your message",
    "verify that you are a person", "verify you are human", "prove you are human", "prove that you are",
    "challenge-response", "challenge/response", "challenge response", "spamarrest", "spam arrest", "boxbe", "tmda",
    "suspect email blocker", "spamblocker", "requires verification", "verification required", "sender verification",
    "confirm this request", "one-time confirmation", "one time confirmation", "click the link below to confirm you",
    "to prove your message was sent by a human", "your message is being held until",
    "message is awaiting your confirmation", "add yourself to my guest list", "add you to my allowed senders",
    "allowed senders list", "approved senders list", "whitelist request", "confirm that you are a real person",
    "confirm that you are not a spammer", "i'm protecting myself from receiving junk mail",
    "sender address verification", "reply to this message to confirm", "please reply to this e-mail to confirm",
    "confirm you are a real person", "confirm you are human", "authenticate your email", "bluebottle", "vanquish",
    "mailblocks", "choicemail", "uol antispam", "antispamuol", "confirmação de envio", "0spam", "qurb",
    "active spam killer", "confirm your email to", "bestätigen sie, dass sie", "confirmez que vous",
    "confirme que usted", "confirme o envio", "подтвердите, что вы", "mailinblack",
    "authentification de votre e-mail", "merci de vous authentifier",
)  # fmt: skip

# Services that do nothing else.
CHALLENGERS = ("boxbe", "spamarrest", "spam arrest", "bluebottle", "mailinblack", "antispamuol")

# By what a complaint that is no ARF report is known: its subject.
COMPLAINTS = (
    "complaint about message from", "abuse report", "spam report", "spam complaint", "email feedback report",
    "abuse complaint", "feedback loop", "email abuse", "report of spam", "complaint about spam",
    "client tos notification", "uce report", "unsolicited mail report", "unsolicited email", "[spamcop",
    "marked as spam", "reported as spam", "complaint notification", "abuse message from", "this is spam", "jmrp",
    "fbl report", "fbl:", "spam feedback", "feedback report",
)  # fmt: skip
