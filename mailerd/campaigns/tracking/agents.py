"""What programs call themselves (User-Agent) that ask for pixels and links without a person. Pure data.

Only what names itself: most scanners of links look like browsers, and are known by what they do (`actors`). Programs
that show mail to people are not meant, though they fetch for them: Outlook ("ms-office"), GoogleImageProxy,
YahooMailProxy.
"""

import re

# Apple's Mail Privacy Protection loads all pictures when mail arrives, with this and no more (Mailgun's blog, 2021).
BARE = "Mozilla/5.0"
# Gmail with an open session, before the mail is shown (SparkPost, "Gmail is prefetching images", 2022); the same
# browser of 2015 with "Gmail-content-sampling" follows links (mssola/user_agent issue 71).
GMAIL_PREFETCH = "Chrome/42.0.2311.135 Safari/537.36 Edge/12.246"
# They fetch when a person looks, and hide who (Gmail, Yahoo Mail).
IMAGE_PROXIES = ("GoogleImageProxy", "YahooMailProxy")

AUTOMATION = (
    # command lines and libraries of HTTP: their own default names
    "curl/",
    "wget/",
    "python-requests",
    "python-urllib",
    "python/",  # aiohttp: "Python/3.12 aiohttp/3.9"
    "aiohttp/",
    "python-httpx",
    "go-http-client",
    "libwww-perl",
    "lwp::",
    "apache-httpclient",
    "java/",
    "jakarta commons-httpclient",
    "node-fetch",
    "axios/",
    "undici",
    "guzzlehttp",
    "ruby",
    "winhttp",
    "powershell",
    # browsers without a screen
    "headlesschrome",
    "phantomjs",
    "puppeteer",
    "playwright",
    "selenium",
    # scanners of mail and links that say so (JayBizzle/Crawler-Detect issue 552 and its list; vendors' own pages)
    "barracuda",
    "proofpoint",
    "mimecast",
    "spamexperts",
    "symantec",
    "messagelabs",
    "trendmicro",
    "bitdefender",
    "forcepoint",
    "ironport",
    "fireeye",
    "trustwave",
    "safelinks",
    "urldefense",
    "virustotal",
    "urlscan",
    "google-safety",
    "gmail-content-sampling",
    "bingpreview",
    "skypeuripreview",
    "facebookexternalhit",
    "whatsapp/",
    # whatever calls itself so; and see `BOT`
    "crawl",
    "spider",
    "scanner",
    "validator",
    "linkcheck",
)
BOT = re.compile(r"(?<!cu)bot\b")  # CUBOT makes telephones


def automation(user_agent: str) -> str:
    """The part of the name that gives a program away; "" for none."""
    agent = user_agent.lower()  # one search for each: an expression of all of them takes twenty times as long
    for part in AUTOMATION:
        if part in agent:
            return part.strip("/:")
    return "bot" if "bot" in agent and BOT.search(agent) else ""
