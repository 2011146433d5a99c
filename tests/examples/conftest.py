"""The from-scratch walk is a folder of scripts; the tests import them as the scripts import each other."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "from_scratch"
sys.path.insert(0, str(FOLDER))
