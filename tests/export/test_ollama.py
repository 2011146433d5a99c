"""The text of Modelfiles."""

from tsugiki.export import modelfile


def test_stop_texts_and_context() -> None:
    assert modelfile("./a.gguf", ["<|im_end|>", 'say "no"'], 2048) == (
        'FROM ./a.gguf\nPARAMETER num_ctx 2048\nPARAMETER stop "<|im_end|>"\nPARAMETER stop """say "no""""\n'
    )
    assert modelfile("./a.gguf").splitlines()[1:] == ["PARAMETER num_ctx 4096"]
