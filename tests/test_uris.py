"""No text of a URI has what it hides."""

from __future__ import annotations

import pickle
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpm_tune.errors import UserError
from gpm_tune.uris import MASK, URI, sqlite_file, without_secrets

# Whatever people put into passwords; long enough not to be part of a host's name by chance.
PASSWORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=6).map("Q7z".__add__)
RAW = st.sampled_from("/?#@:&;=,%'\"")
PLANTED = st.one_of(
    PASSWORDS.map(lambda text: quote(text, safe="")),
    st.lists(RAW, min_size=1, max_size=3).map(lambda signs: "Q7zplanted".join(["", *signs, ""])),
)
SHAPES = [
    "postgresql://user:{}@host:5432/db",
    "postgresql+psycopg2://user@server:{}@host/db?sslmode=require",
    "https://{}@host/mlflow",
    "http://user:{}@127.0.0.1:5000",
    "http:///user:{}@host",
    "postgresql:/user:{}@host/db",
    "user:{}@host",
    "https://host/mlflow?token={}",
    "mysql://host/db?charset=utf8&password={}",
    "https://host/mlflow#access_token={}",
    "mssql://host/db;PWD={}",
    "sqlite+pysqlcipher://:{}@//folder/mlflow.db?cipher=aes",
    "sqlite:///file:mlflow.db?uri=true&key={}",
]


@pytest.mark.parametrize("shape", SHAPES)
@given(secret=PLANTED)
@settings(max_examples=30)
def test_a_planted_secret_is_in_no_text(shape: str, secret: str) -> None:
    whole = shape.format(secret)
    uri = URI(whole)
    assert uri.secret() == whole
    assert pickle.loads(pickle.dumps(uri)) == uri
    message = f"could not open {whole} (Background: see https://docs.example/errors)"
    for text in (
        str(uri),
        repr(uri),
        f"{uri}",
        without_secrets(message),
        without_secrets(f"no port '{secret}'"),
    ):
        assert secret not in text
        assert "Q7zplanted" not in text
        assert MASK in text


@pytest.mark.parametrize(
    ("whole", "shown"),
    [
        ("postgresql://user:password@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://user:pass/word@host/db", "postgresql://***@host/db"),
        ("https://host/mlflow?token=value", "https://host/mlflow?***"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://host:5000/path", "http://host:5000/path"),
        (
            "sqlite:////home/me@work:1/what?/50%/#1/mlflow.db",
            "sqlite:////home/me@work:1/what?/50%/#1/mlflow.db",
        ),
        ("file:///home/me@work/mlruns", "file:///home/me@work/mlruns"),
        ("/home/me@work/a:b?c", "/home/me@work/a:b?c"),
        ("./mlruns", "./mlruns"),
        ("http://host:5000;", "http://host:5000;"),
        ("https://docs.example/page.html#storage", "https://docs.example/page.html#storage"),
        ("databricks", "databricks"),
        ("", ""),
    ],
)
def test_what_is_no_secret_is_shown(whole: str, shown: str) -> None:
    assert str(URI(whole)) == shown


@pytest.mark.parametrize(
    "message",
    [
        "Port could not be cast to integer value as 'half'",
        'invalid literal for int() with base 10: "half"',
        "host 'OTHER' not found",
        "Failed to parse: http://user:half/other@host",
        "authentication failed with half%2Fother",
    ],
)
def test_parts_of_a_secret_are_masked_in_messages_of_others(message: str) -> None:
    URI("http://user:half/other@host")
    text = without_secrets(message)
    assert "half" not in text
    assert "other" not in text.lower()


def test_words_that_only_contain_a_part_stay() -> None:
    URI("http://user:add/per@host")
    assert without_secrets("permission for address") == "permission for address"


def test_values_of_a_query_that_are_no_secret_stay_words() -> None:
    uri = URI("postgresql://host/db?sslmode=verify-ca&password=planted-here")
    assert str(uri) == "postgresql://host/db?***"
    assert without_secrets("verify-ca took planted-here") == "verify-ca took ***"


def test_a_misspelt_uri_of_sqlite_is_refused() -> None:
    for text in ("sqlite:/folder/mlflow.db", "sqlite:mlflow.db"):
        with pytest.raises(UserError, match="help: give sqlite:///FILE"):
            sqlite_file(text)


def test_a_shown_text_stands_for_what_the_environment_has() -> None:
    whole, shown = "postgresql://u:secret-of-mine@host/db", "postgresql://***@host/db"
    assert URI.chosen(whole, None).secret() == whole
    assert URI.chosen(shown, whole).secret() == whole
    for environment in (None, "", "postgresql://u:secret-of-mine@other/db"):
        with pytest.raises(UserError, match="help: set MLFLOW_TRACKING_URI"):
            URI.chosen(shown, environment)
