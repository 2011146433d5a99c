"""The public names of a package."""

import subprocess
import sys

import pytest

import tsugiki.lowbit
import tsugiki.training


def test_a_package_has_the_public_names_of_its_modules_and_imports_them_when_they_are_used():
    code = """
import sys
import tsugiki.training
names = dir(tsugiki.training)
print("torch" in sys.modules, {"train", "RunConfig", "PackedDataset"} <= set(names), any(n[0] == "_" for n in names))
print(type(tsugiki.training.CHAPTER), "torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "False True False\n<class 'dict'> False\n"


@pytest.mark.parametrize("name", ["nowhere", "_settings", "data", "plain_levels"])
def test_a_name_that_is_private_or_not_of_one_module_is_none_of_the_package(name: str):
    """`data` is a package, and `plain_levels` is defined in two modules."""
    package = tsugiki.lowbit if name == "plain_levels" else tsugiki.training
    with pytest.raises(AttributeError, match=f"called '{name}'"):
        vars(package)["__getattr__"](name)
