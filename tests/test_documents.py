"""YAML documents: line numbers, overrides, and errors that a person can act on."""

import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpm_tune.config import Config
from gpm_tune.documents import Document
from gpm_tune.errors import UserError


class Inner(Config):
    """Part of the test's schema."""

    width: int = 3
    rates: tuple[float, ...] = ()


class Outer(Config):
    """The test's schema."""

    name: str = "x"
    inner: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "file.yaml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str, *specs: str) -> str:
    """The message with which a document of this text is refused."""

    def parse() -> None:
        document = Document.load(write(folder, text))
        for spec in specs:
            document.set(spec)
        document.parse(Outer)

    with pytest.raises(UserError) as error:
        parse()
    return str(error.value).replace(str(folder), "")


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    document = Document.load(write(tmp_path, "inner: {rates: [2e-4, 1E3, -5e+2, 1.5e-1]}"))
    assert document.parse(Outer).inner.rates == (2e-4, 1e3, -5e2, 0.15)


def test_what_is_no_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Document.load(tmp_path / "missing.yaml")
    assert "file.yaml:2: not valid YAML" in refusal(tmp_path, "name: [1,\n: : {")
    assert "expected keys and values" in refusal(tmp_path, "- a list")
    assert "expected keys and values" in refusal(tmp_path, "")
    assert "file.yaml:3: key 'name' stands here a second time" in refusal(
        tmp_path, "name: a\ninner: {}\nname: b"
    )
    assert "file.yaml:1: nested more than 32 deep, or in itself" in refusal(tmp_path, "name: &a [*a]")
    assert "file.yaml:2: the tag '!!python/object:os.system' is not allowed" in refusal(
        tmp_path, "name: x\ninner: !!python/object:os.system {}"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a: &a [x, x]\n"
            + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in pairwise("abcdefghijklm")),
            "aliases",
        ),
        ("name: x\n1: y", "file.yaml:2: a key must be text, '1' is read as int: quote it"),
        ("? [a]\n: y", "a key must be text, this is a list or a mapping"),
        ("name: !!set {a}", "the tag '!!set' is not allowed"),
        ("name: !!bool maybe", "'maybe' is not a valid bool"),
        ("inner: {width: 0x" + "f" * 5000 + "}", "the number needs more than 64 bits"),
        ("name: x\nnam\u0007e: y", "file.yaml:2: not valid YAML: the character '\\x07' is not allowed"),
        ('name: "\\0"', "characters that text cannot have"),
        ("a: 1\n---\nb: 2", "file.yaml:2: not valid YAML: expected a single document"),
        ("na me: |\n  x\n? 'two\n\n  lines'\n: 3", "unknown key 'na me'"),
        ("inner: {width: true}", "inner.width: expected a number, found true"),
    ],
)
def test_odd_yaml_is_refused_in_one_line_each(tmp_path: Path, text: str, expected: str) -> None:
    message = refusal(tmp_path, text)
    assert expected in message
    assert all(line.startswith("/file.yaml") and len(line) < 300 for line in message.splitlines())


def test_an_override_leaves_aliases_alone(tmp_path: Path) -> None:
    document = Document.load(write(tmp_path, "a: &a {k: 1}\nb: *a"))
    document.set("a.k=2")
    assert document.data == {"a": {"k": 2}, "b": {"k": 1}}


def test_errors_name_file_line_key_and_what_was_expected(tmp_path: Path) -> None:
    message = refusal(tmp_path, "name: a\ninner:\n  widht: 4\n")
    assert (
        message == "/file.yaml:3: inner.widht: unknown key 'widht'; did you mean 'width'? valid: rates, width"
    )
    message = refusal(tmp_path, "inner:\n  width: wide\n")
    assert message.startswith("/file.yaml:2: inner.width: expected a whole number")
    assert message.endswith("found 'wide'")


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "name: [1]\ninner:\n  width: wide\n  rates: [1, two]\n")
    assert [line.split(": ")[0] for line in message.splitlines()] == [
        "/file.yaml:1",
        "/file.yaml:3",
        "/file.yaml:4",
    ]
    assert "inner.rates.1: " in message


def test_overrides_are_validated_like_the_file_and_named_in_errors(tmp_path: Path) -> None:
    document = Document.load(write(tmp_path, "name: a\n"))
    document.set("inner.width=7")
    document.set("inner.rates=[1, 2e-1]")
    assert document.parse(Outer) == Outer(name="a", inner=Inner(width=7, rates=(1.0, 0.2)))
    message = refusal(tmp_path, "name: a\n", "inner.width=wide")
    assert message.startswith("--set inner.width=wide: inner.width: expected a whole number")
    assert "did you mean 'inner'?" in refusal(tmp_path, "name: a\n", "iner.width=3")
    assert "expected KEY=VALUE" in refusal(tmp_path, "name: a\n", "inner.width")
    assert "not valid YAML" in refusal(tmp_path, "name: a\n", "name=[")


def test_overrides_reach_keys_with_dots(tmp_path: Path) -> None:
    document = Document.load(write(tmp_path, "search:\n  model.eta: {float: [1, 2]}\n"))
    document.set("search.model.eta.float=[3, 4]")
    document.set("search.training.optimizer.lr={choice: [1e-3]}")
    new = {"training.optimizer.lr": {"choice": [1e-3]}}
    assert document.data == {"search": {"model.eta": {"float": [3, 4]}, **new}}


@given(st.text())
def test_no_text_makes_anything_but_a_document_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "file.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        data = Document.load(path).data
    except UserError as error:
        message = str(error)
    else:
        message = str(path)
        assert isinstance(data, dict)
    assert message.startswith(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "list: [" + "1, " * 3_000_000 + "1]",
        "list: [" + "1, " * 300_000 + "1]",
        "".join(f"key{number}: 1\n" for number in range(100_000)),
        "list: &a [" + "*a, " * 100_000 + "*a]",
        "a" * 3_000_000,
    ],
    ids=["millions", "below the limit of bytes", "keys", "aliases", "a word"],
)
def test_files_too_long_for_a_person_are_refused_as_soon_as_that_is_seen(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    message = refusal(tmp_path, text)
    assert re.search("more than 20,000 values|at most 2,000,000 bytes", message)
    assert len(message) < 200
    assert time.process_time() - start < 10, "of its own time: reading millions of values takes minutes"


def test_what_never_ends_is_refused() -> None:
    with pytest.raises(UserError, match="/dev/zero: is too long: expected at most 2,000,000 bytes"):
        Document.load(Path("/dev/zero"))


def test_of_thousands_of_problems_some_are_told(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "inner:\n  rates:\n" + "  - x\n" * 5000).splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 4950 more"
