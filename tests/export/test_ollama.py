"""The text of Modelfiles."""

from tsugiki.export import modelfile


def test_base_adapter_stop_texts_and_context() -> None:
    assert modelfile("./a.gguf", "./b.gguf", ["<|im_end|>", 'say "no"'], 2048) == (
        "# Ollama supports no adapters since version 0.34.1; for that version or newer, export the merged model.\n"
        "FROM ./a.gguf\n"
        "ADAPTER ./b.gguf\n"
        "PARAMETER num_ctx 2048\n"
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop """say "no""""\n'
    )


def test_an_unknown_base_becomes_a_comment() -> None:
    lines = modelfile(None, "./b.gguf").splitlines()
    assert lines[1].startswith("# FROM ")
    assert lines[2:] == ["ADAPTER ./b.gguf", "PARAMETER num_ctx 4096"]
