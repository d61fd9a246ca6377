"""Keys and passwords in URIs: refused where data lies, and hidden wherever a URI is shown or stored."""

import re
from urllib.parse import SplitResult, unquote, urlsplit

from glo_core.common.errors import ConfigError

HIDDEN = "***"
_SECRET = (
    r"(?<![a-z])(?:(?:[a-z]*(?:api|access|account|secret|private|shared|ssl|sas|signing))?keys?(?:id|file)?|pass(?:word)?"
    r"|pwd|sig|sas|auth|authorization|odbc_connect"
    r"|[a-z]*(?:secret|token|passwd|password|passphrase|credential|signature)s?)(?![a-z])"
)
"""A word of an option's name that tells a secret; `_`, `-`, `.` and digits part words: `author` is none"""
_HARMLESS = ("blob_storage_authority", "dfs_storage_authority", "credential_kind")
"""Options of pyarrow's file systems that sound like secrets"""
_ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
    "hdfs": "KRB5CCNAME",
}
"""Variables that each store's own library reads"""
_FAMILY = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "abfss": "abfs", "az": "abfs", "azure": "abfs", "viewfs": "hdfs"}

_IN_TEXT = (
    # user:password@, up to the last @: a password may hold a slash, which no port does.
    (re.compile(r"(://)[^/\s@:'\"]*:(?!\d+(?:[/?#'\"\s]|$))\S*@"), rf"\1{HIDDEN}@"),
    # What looks like a port may begin the password of a database, whose name holds no @.
    (re.compile(r"((?:mysql|mariadb|postgres|mssql|oracle)[\w+]*://)[^/\s@:]*:\S*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"(://)[^/\s@'\"]*@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"([?&;][^=&;\s'\"]*(?:{_SECRET})[^=&;\s'\"]*=)[^&;\s'\"#]*", re.IGNORECASE), rf"\1{HIDDEN}"),
)


def require_no_credentials(uri: str) -> None:
    """Raise `ConfigError`, which does not repeat them, if the URI of data holds a key, a password or a token."""
    parts = urlsplit(uri)
    scheme = parts.scheme.lower().removesuffix("+http").removesuffix("+https")
    family = _FAMILY.get(scheme, scheme)
    if _secret_authority(parts, family) or any(_secret_option(name) for name in _options(parts)):
        place = _ENVIRONMENT.get(family, "the environment of its store, such as AWS_ACCESS_KEY_ID")
        raise ConfigError(
            f"{parts.scheme}://{HIDDEN}: this URI holds a key or a password, which would be stored with the data; "
            f"leave it out and set {place}"
        )


def _secret_authority(parts: SplitResult, family: str) -> bool:
    """Whether user:password@ or KEY:SECRET@ stands before the host, also percent-encoded or with slashes in it."""
    authority = unquote(unquote(parts.netloc))
    user, at, host = authority.rpartition("@")
    port = re.sub(r"^\[[^\]]*\]", "", host).partition(":")[2]  # Behind the brackets of an IPv6 address
    # A secret key may hold a slash: the @ then stands in the path, and the part before it looks like a port.
    if family in ("s3", "gs") and (":" in host or (family == "s3" and at)):
        return True
    return ":" in user or (bool(port) and not port.isdecimal())


def _options(parts: SplitResult) -> list[str]:
    """The names of the options in the query, which a fragment may cut short, in lower case."""
    query = unquote(unquote(f"{parts.query}&{parts.fragment}"))
    return [option.partition("=")[0].strip().lower() for option in re.split(r"[&;?]", query) if "=" in option]


def _secret_option(name: str) -> bool:
    return name not in _HARMLESS and re.search(_SECRET, name) is not None


def redact(text: str, *uris: str) -> str:
    """`text` with every user, password and secret option of URIs in it replaced by `***`.

    Args:
        uris: whose secrets are hidden also where `text` repeats them alone.
    """
    for secret in sorted({secret for uri in uris for secret in _secrets(uri)}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern, hidden in _IN_TEXT:
        text = pattern.sub(hidden, text)
    return text


def _secrets(uri: str) -> list[str]:
    """The passwords and secret options of `uri`, as they stand and decoded; very short ones are in any text."""
    userinfo = re.match(r"[\w+.-]+://([^\s]*)@", uri)
    # Of a user without a password only one as long as a token is a secret.
    user, colon, password = userinfo[1].partition(":") if userinfo else ("", "", "")
    secrets = [password] if colon else [user] if len(user) > 15 else []
    secrets += [
        value
        for name, _, value in (option.partition("=") for option in re.split(r"[?&;#]", uri))
        if _secret_option(name.lower())
    ]
    return [form for secret in secrets for form in (secret, unquote(secret)) if len(form) > 3]
