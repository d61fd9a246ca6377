"""URIs with keys and passwords: which are refused as places of data, and what is shown of others."""

import pytest

from glo_core import UserError
from glo_core.common.credentials import redact
from glo_core.common.location import Location

WITH_SECRET = [
    "s3://KEY:HUNTER2@bucket/x",
    "S3://KEY:HUNTER2@bucket/x",
    "s3a://KEY:123/HUNTER2@bucket",
    "s3://KEY:HUN/TER2@bucket/x",
    "s3://KEY:HUN#TER2@bucket/x",
    "s3://KEY:HUN?TER2@bucket/x",
    "s3://KEY:HUN+TER/2==@bucket/x",
    "s3://KEY%3AHUNTER2@bucket/x",
    "s3://KEY%3AHUNTER2%40bucket/x",
    "s3://KEY%253AHUNTER2%2540bucket/x",
    "s3://HUNTER2@bucket/x",
    "s3://bucket/x?access_key=A&secret_key=HUNTER2",
    "s3://bucket/x?session_token=HUNTER2",
    "s3://bucket/x?region=a&SECRET_KEY=HUNTER2",
    "s3://bucket/x?%73ecret_key=HUNTER2",
    "s3://bucket/x?secret%5Fkey=HUNTER2",
    "s3://bucket/x#?secret_key=HUNTER2",
    "s3://bucket/x?X-Amz-Signature=HUNTER2",
    "abfs://container:HUNTER2@account.dfs.core.windows.net/x",
    "abfs://:HUNTER2@account.dfs.core.windows.net/x",
    "abfs://container@account.dfs.core.windows.net/x?account_key=HUNTER2",
    "abfss://container@account.dfs.core.windows.net/x?sas_token=HUNTER2",
    "https://account.blob.core.windows.net/x?sv=2&sig=HUNTER2",
    "http://user:HUNTER2@host/x",
    "http://user:HUNTER2@[::1]:80/x",
    "hdfs://user:HUNTER2@node:8020/x",
    "gs://a:HUNTER2@bucket/x",
    "gs://bucket?access_token=HUNTER2",
    "postgresql://user:HUNTER2@host/db",
    "s3://bucket/x?AWSAccessKeyId=HUNTER2",
    "s3://bucket/x?accessToken=HUNTER2",
    "s3://bucket/x?X-Amz-Security-Token=HUNTER2",
    "s3://bucket/x?X-Amz-Credential=HUNTER2",
    "https://host/x?apikey=HUNTER2",
    "https://host/x?sslpassword=HUNTER2",
    "https://host/x?my.pass=HUNTER2",
    "https://host/x?auth=HUNTER2",
    "https://host/x?client-secret=HUNTER2",
]
WITHOUT = [
    "s3://bucket/a@b/c:d",
    "s3://bucket/?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1&allow_bucket_creation=true",
    "s3://bucket/?endpoint_override=127.0.0.1%3A9000",
    "abfs://container@account.dfs.core.windows.net/x",
    "abfs://c@account.dfs.core.windows.net/x?blob_storage_authority=.local&credential_kind=default",
    "hdfs://user@node:8020/x?replication=1",
    "hdfs://[::1]:8020/x",
    "gs://anonymous@bucket/x?retry_limit_seconds=4&project_id=x",
    "file:///x:y@z/?key=1",
    "s3://bucket/img?author=smith.jpg",
    "s3://bucket/img?design=1&compass=2&monkey=3",
]


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_a_place_of_data_with_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(UserError, match=r"holds a key or a password.*; leave it out and set ") as caught:
        Location(uri)
    assert not any(part in str(caught.value) for part in ("HUN", "TER2"))


@pytest.mark.parametrize("uri", WITHOUT)
def test_a_place_without_a_secret_is_taken(uri: str) -> None:
    assert str(Location(uri)) == uri.removeprefix("file://")


def test_the_variables_that_are_named_are_those_of_the_store() -> None:
    with pytest.raises(UserError, match=r"s3://\*\*\*: .*set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and"):
        Location("s3://a:b@c/d")
    with pytest.raises(UserError, match="set AZURE_CLIENT_ID"):
        Location("abfss://a:b@c/d")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://user:pa/ss@host/db?sslmode=require", "at postgresql://***@host/db?sslmode=require"),
        ("http://user:pw@host:5000/x?a=1 failed", "http://***@host:5000/x?a=1 failed"),
        ("http://TOKEN@host/x?api_key=1&y=2", "http://***@host/x?api_key=***&y=2"),
        ("'mysql+pymysql://u:p%40q@h' (http://a:b@c)", "'mysql+pymysql://***@h' (http://***@c)"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER;PWD=x", "mssql+pyodbc:///?odbc_connect=***;PWD=***"),
        ("at mysql+pymysql://user:pa'ss@host/db", "at mysql+pymysql://***@host/db"),
        ("postgresql://user:12/34@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://host:5432/db", None),
        ("s3://bucket/img?author=smith.jpg&design=a", None),
        ("sqlite:////a/b@c.db, s3://bucket/a@b, http://h:5000/a@b", None),
    ],
)
def test_what_is_shown_of_a_uri_in_a_text(text: str, shown: str | None) -> None:
    assert redact(text) == (shown or text)


def test_a_secret_is_hidden_where_it_stands_alone_and_where_it_is_decoded() -> None:
    uri = "mysql://user:p%40ss!!@host/db?password=hunter2"
    assert redact("login with p@ss!! or p%40ss!! or hunter2 failed for user", uri) == (
        "login with *** or *** or *** failed for user"
    )
