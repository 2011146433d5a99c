"""`tsugiki adapters show`."""

from pathlib import Path


def test_show(run, two: Path, tmp_path: Path):
    status, out, _ = run("adapters", "show", "soseki", "--html", "page.html")
    assert status == 0
    for said in ("lora, r 4", "bits per character", "40輪咲いた。", "h.1.attn.c_attn"):
        assert said in out, said
    assert (tmp_path / "page.html").is_file()
    assert run("adapters", "show", str(two / "akutagawa"))[0] == 0
    status, _, err = run("adapters", "show", "soseki", "--html", "no/where.html")
    assert (status, "no/where.html" in err) == (2, True)
