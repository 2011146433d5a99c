"""Commands in a new Python process, which must not import certain packages."""

import subprocess
import sys


def output_without(packages: set[str], *arguments: str) -> str:
    """The standard output of `tsugiki …`, which may import none of `packages`."""
    code = (
        f"import sys; sys.argv = ['tsugiki', *{arguments!r}]\n"
        "from tsugiki.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"imported = {packages!r} & sys.modules.keys()\n"
        "assert not imported, imported"
    )
    return subprocess.check_output([sys.executable, "-c", code], text=True)
