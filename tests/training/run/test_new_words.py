"""`--add-tokens`: new words are tokens whose vectors train, in the whole life of an adapter."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.errors import refused
from tests.runs import assert_resumes, run_config, tiny_base
from tests.tiny import byte_tokenizer, logits, relative_error, tiny_model
from tsugiki import load_adapter
from tsugiki.adapters import with_new_words
from tsugiki.base import add_rows, add_words, load_model, load_tokenizer, read_words
from tsugiki.cli import root_command
from tsugiki.training import train

WORDS = ["庭師", "枝を", "a"]  # the last is a token already

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\n\n", "0 words"), (b"\xff\xfe\x00", "cannot be read"), (b"x" * 200, "200 characters")]
)
def test_a_bad_file_of_words_is_one_line(content: bytes, said: str, tmp_path: Path):
    (tmp_path / "words.txt").write_bytes(content)
    with refused(said):
        read_words(tmp_path / "words.txt")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_new_row_is_the_mean_of_the_pieces(kind: str):
    model, tokenizer = tiny_model(kind, vocab_size=257), byte_tokenizer()

    def weights() -> list[torch.Tensor]:
        return [layer.weight.detach() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]

    before, pieces = [weight.clone() for weight in weights()], tokenizer.encode("庭師")
    new = add_words(tokenizer, WORDS)
    add_rows(model, new)
    assert tokenizer.encode("庭師a") == [257, new.ids[2]]
    assert new.ids[2] < 257
    for old, weight in zip(before, weights(), strict=True):
        assert weight.shape == (259, 32)
        assert torch.equal(weight[:257], old)
        assert torch.allclose(weight[257], old[pieces].mean(0))
    assert model.config.vocab_size == 259


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_new_words_in_the_life_of_an_adapter(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base, words = tiny_base(tmp_path, kind), tmp_path / "words.txt"
    words.write_text("\ufeff庭師\n\n 枝を\n庭師\na\n")
    assert read_words(words) == WORDS
    config = run_config(tmp_path, model=base, add_tokens=str(words))
    out = (assert_resumes(train, config, 3) if kind == "llama" else train(config)).folder()
    tensors = load_file(out / "adapter_model.safetensors")
    trained = {name: tensor for name, tensor in tensors.items() if "lora" not in name}
    assert [len(tensor) for tensor in trained.values()] == [3] * (1 if kind == "gpt2" else 2)

    model = load_model(base)
    tokenizer = with_new_words(model, load_tokenizer(base), out)
    assert tokenizer.encode("庭師") == [257]
    vectors = next(iter(trained.values()))
    rows = model.get_input_embeddings().weight[:257]
    load_adapter(model, out)
    assert relative_error(vectors[:1], rows[byte_tokenizer().encode("庭師")].mean(0)[None]) > 1e-3, "it has trained"

    tokens = torch.tensor([[257, 5, 258, 98]])
    expected = logits(model, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(base)
    theirs.resize_token_embeddings(len(AutoTokenizer.from_pretrained(out)))
    assert relative_error(logits(peft.PeftModel.from_pretrained(theirs, out), tokens), expected) < 1e-5

    def run(*arguments: str) -> str:
        capsys.readouterr()
        root_command()(arguments, standalone_mode=False)
        return capsys.readouterr().out

    merged = str(tmp_path / "merged")
    run("merge", "--model", base, "--adapter", str(out), "--out", merged)
    assert relative_error(logits(load_model(merged), tokens), expected) < 1e-5
    assert load_tokenizer(merged).encode("庭師") == [257]
    written = ["generate", "--prompt", "庭師", "--max-new-tokens", "4", "--temperature", "0"]
    assert run(*written, "--model", merged) == run(*written, "--model", base, "--adapter", str(out))
    text = next(Path(config.data[0]).iterdir())
    assert "bits per character" in run("eval", "--data", str(text), "--model", base, "--adapter", str(out))
