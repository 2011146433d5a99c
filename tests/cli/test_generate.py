"""`tsugiki generate`: adapters and prompts that do not fit."""

from pathlib import Path

from tests.runs import TRAIN
from tests.tiny import save_tiny


def test_adapters_that_do_not_fit(base: str, run, tmp_path: Path):
    assert run("train", "--model", base, *TRAIN)[0] == 0
    other, wide = save_tiny(tmp_path / "other", seed=1), save_tiny(tmp_path / "wide", n_embd=64)
    prompt = ("--adapter", "run", "--prompt", "a", "--max-new-tokens", "1")
    for model, said in ((other, "--allow-base-mismatch"), (wide, "--allow-base-mismatch")):
        status, out, err = run("generate", "--model", model, *prompt)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err
    status, _, err = run("generate", "--model", wide, *prompt, "--allow-base-mismatch")
    assert status == 2
    assert "[16, 64]" in err
    assert run("generate", "--model", other, *prompt, "--allow-base-mismatch")[0] == 0
    status, _, err = run("generate", "--model", base, "--adapter", "nowhere", "--prompt", "a")
    assert (status, "'nowhere'" in err) == (2, True)
    status, _, err = run("generate", "--model", base, "--prompt", "雨" * 40)
    assert (status, "64" in err) == (2, True)
