"""Helpers for messages of errors."""

from tsugiki.errors import error_text, is_ordinary, summarise_list


def test_long_lists_are_abbreviated():
    assert summarise_list([str(i) for i in range(5)]) == "0, 1, 2, 3, 4"
    assert summarise_list(["x" * 200, "a\nb"]) == "x" * 150 + ", a b"
    assert summarise_list([str(i) for i in range(1005)]) == "0, 1, 2, 3, 4 and 1,000 more"


def test_a_message_of_many_lines_becomes_one():
    assert error_text(ValueError("a\n  b\tc\n")) == "a b c"
    assert error_text(ValueError("x" * 400)) == "x" * 300


def test_panics_are_errors_and_interruptions_are_not():
    panic = type("PanicException", (BaseException,), {})
    assert is_ordinary(panic())
    assert not is_ordinary(KeyboardInterrupt())
