"""`tsugiki train` with a YAML file."""

from pathlib import Path


def test_a_yaml_file_and_resume(base: str, run, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 2\nblock_size: 32\n")
    assert run("train", "c.yaml")[0] == 0
    status, _, err = run("train", "c.yaml")
    assert (status, "--resume" in err) == (2, True)
    status, _, err = run("train", "c.yaml", "--resume")
    assert (status, "finished" in err) == (2, True)
