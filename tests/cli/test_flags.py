"""Flags are made from the fields of configs: every setting has one, with the field's default and description."""

import dataclasses
import inspect
import sys
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel

import tsugiki
from tests.cli.imports import output_without
from tests.errors import refused
from tsugiki.cli import FlagsOf, as_command, root_command, words_of
from tsugiki.cli.main import main
from tsugiki.io import argument_descriptions
from tsugiki.lora import LoraConfig
from tsugiki.training import DEFAULT_LORA, RunConfig, SweepConfig, settings_of

_Given = Annotated[dict[str, Any], FlagsOf("tsugiki.training.RunConfig", without=("method_config",))]


def flags_of(command: str) -> dict[str, str]:
    """Flag -> help of a command of `tsugiki`."""
    found = root_command().commands[command]
    return {flag: one.help or "" for one in found.get_params(typer.Context(found)) for flag in one.opts}


@pytest.mark.parametrize(
    ("command", "config", "without"),
    [
        ("train", RunConfig, {"method_config"}),
        ("preview", RunConfig, {"method_config", "out"}),
        ("sweep", SweepConfig, {"settings", "methods", "grid"}),
    ],
)
def test_every_setting_has_a_flag_with_its_default_and_description(
    command: str, config: type[BaseModel], without: set[str]
):
    flags = flags_of(command)
    for name in config.model_fields.keys() - without - {"lora"}:
        assert f"--{name.replace('_', '-')}" in flags, name
    for setting in settings_of(config, without):
        text = flags[setting.flag].replace("\\[", "[")
        assert text.startswith(setting.description)
        if setting.default not in (None, False, (), {}):
            assert f"(default: {setting.default})" in text


def test_every_field_of_the_lora_config_has_a_flag_with_the_default_of_a_run():
    nested = {setting.path[1]: setting for setting in settings_of(RunConfig) if setting.path[0] == "lora"}
    assert nested.keys() == {field.name for field in dataclasses.fields(LoraConfig)}
    default = LoraConfig(**DEFAULT_LORA)
    assert all(setting.default == getattr(default, name) for name, setting in nested.items())
    assert {setting.flag for setting in nested.values()} <= flags_of("train").keys()


@pytest.mark.parametrize(
    ("command", "function", "without"),
    [
        ("eval", tsugiki.evaluate, set()),
        ("generate", tsugiki.generate, {"prompt", "json_schema"}),
    ],
)
def test_the_parameters_of_a_public_function_are_the_flags_of_its_command(
    command: str, function: Any, without: set[str]
):
    flags, descriptions = flags_of(command), argument_descriptions(inspect.getdoc(function) or "")
    names = inspect.signature(function).parameters.keys() - without
    assert {f"--{name.replace('_', '-')}" for name in names} <= flags.keys()
    for name in descriptions.keys() - without:
        assert flags[f"--{name.replace('_', '-')}"].lower().startswith(descriptions[name].partition("`")[0].lower())


def received(arguments: list[str]) -> Any:
    """The settings that a command is given."""

    def command(settings: _Given) -> None:
        found.append(settings)

    found: list[dict[str, object]] = []
    app = typer.Typer()
    app.command()(as_command(command))
    app(arguments, standalone_mode=False)
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--epochs", "2", "--seed", "7"], {"epochs": 2.0, "seed": 7}),
        (["--base-dropout"], {"base_dropout": True}),
        (["--no-base-dropout"], {"base_dropout": False}),
        (["--held-out", "0.2"], {"held_out": 0.2}),
        (["--held-out", "author=A"], {"held_out": "author=A"}),
        (["--prompts", "a, b", "--prompts", "c"], {"prompts": ["a, b", "c"]}),
        (["--r", "4", "--lora-alpha", "8"], {"lora": {"r": 4, "lora_alpha": 8.0}}),
        (["--target-modules", "q_proj, v_proj"], {"lora": {"target_modules": ["q_proj", "v_proj"]}}),
        (["--target-modules", "all-linear"], {"lora": {"target_modules": "all-linear"}}),
        (["--init-lora-weights", "pissa"], {"lora": {"init_lora_weights": "pissa"}}),
        (["--init-lora-weights", "false"], {"lora": {"init_lora_weights": False}}),
        (["--layers-to-transform", "[0, 1]"], {"lora": {"layers_to_transform": [0, 1]}}),
        (["--rank-pattern", "{c_fc: 2}"], {"lora": {"rank_pattern": {"c_fc": 2}}}),
    ],
)
def test_given_flags_are_settings_as_in_a_yaml_file(arguments: list[str], settings: dict[str, object]):
    assert received(arguments) == settings


def test_a_flag_that_is_not_yaml_is_named():
    with refused("--rank-pattern"):
        received(["--rank-pattern", "{"])


def test_help_does_not_import_torch():
    assert "--set" in output_without({"torch", "transformers", "numpy", "httpx2"}, "train", "--help-all")


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "embedded", "data": "a b.jsonl", "out": "runs/x"},
        {
            "model": "m",
            "data": ["a.txt", "b.txt"],
            "out": "o",
            "learning_rate": 1e-5,
            "patience": 0,
            "base_dropout": True,
            "prompts": ["春は", "it's"],
            "method": "dora",
            "columns": {"prompt": "a=b", "completion": "the answer"},
            "lora": {"r": 4, "target_modules": ["c_attn", "lm_head"], "rank_pattern": {"c_attn": 2}, "bias": "all"},
        },
        {"model": "m", "data": "d", "out": "o", "method": "prompt-tuning", "method_config": {"num_virtual_tokens": 3}},
    ],
)
def test_words_give_the_settings_again(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    taken: list[RunConfig] = []
    monkeypatch.setattr("tsugiki.cli.train.check_settings", lambda given: None)  # the files do not exist
    monkeypatch.setattr(
        "tsugiki.training.run.stages.train", lambda config, *_, **__: taken.append(config) or sys.exit(0)
    )
    config = RunConfig.model_validate(settings)
    words = words_of(RunConfig, config.model_dump(mode="json", exclude_unset=True))
    assert not [word for word in words if word in ("--epochs", "--lora-dropout")]
    monkeypatch.setattr(sys, "argv", ["tsugiki", "train", *words])
    with pytest.raises(SystemExit):
        main()
    assert taken == [config]
