"""Adapters of classifiers: their output layers begin as random numbers, so they train and are saved, as in PEFT."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from tests.adapters.folders import edit_weights
from tests.adapters.peft_matrix import MODELS, outputs
from tests.errors import refused
from tests.tiny import grafted, relative_error, shake
from tsugiki import LoraConfig, graft, load_adapter, merge, save_adapter, trainable_parameters, ungraft
from tsugiki.adapters import read_config_fields
from tsugiki.methods import IA3Config, PromptTuningConfig

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", [*("llama", "t5", "whisper"), *(kind for kind in MODELS if "bert" in kind)])
def test_the_task_type_follows_the_models_class(kind: str, tmp_path: Path):
    model = graft(MODELS[kind].build(), LoraConfig(target_modules=MODELS[kind].targets))
    save_adapter(model, tmp_path)
    assert read_config_fields(tmp_path)["task_type"] == MODELS[kind].task


def test_peft_calls_a_model_of_texts_and_images_with_an_adapter(tmp_path: Path):
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 99, "eos_token_id": 1},
        vision_config={**sizes, "image_size": 30, "patch_size": 15},
        projection_dim=16,
    )

    def clip() -> Any:
        torch.manual_seed(0)
        return transformers.CLIPModel(config).eval()

    inputs = {"input_ids": torch.tensor([[5, 6, 1]]), "pixel_values": torch.ones(1, 3, 30, 30)}
    with torch.no_grad():
        ours = grafted(clip(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        save_adapter(ours, tmp_path)
        expected = ours(**inputs).image_embeds
        theirs = peft.PeftModel.from_pretrained(clip(), tmp_path)
        assert read_config_fields(tmp_path)["task_type"] is None
        assert relative_error(theirs(**inputs).image_embeds, expected) < 1e-6
        assert relative_error(clip()(**inputs).image_embeds, expected) > 1e-3


@pytest.mark.parametrize("config", [LoraConfig(), LoraConfig(target_modules="all-linear"), IA3Config()])
@pytest.mark.parametrize(("kind", "head"), [("llama for sequences", "score"), ("bert for questions", "qa_outputs")])
def test_the_output_layer_trains_as_a_whole(kind: str, head: str, config: Any, tmp_path: Path):
    model = MODELS[kind].build()
    inputs = MODELS[kind].inputs()
    graft(model, config)
    trained = {name for name in trainable_parameters(model) if head in name}
    assert trained == {name for name, _ in MODELS[kind].build().named_parameters() if head in name}
    expected = outputs(shake(model), inputs)
    save_adapter(model, tmp_path)
    other = MODELS[kind].build()
    with torch.no_grad():
        other.get_submodule(head).weight.normal_()  # as from_pretrained leaves it
    load_adapter(other, tmp_path)
    assert relative_error(outputs(other, inputs), expected) < 1e-6
    assert relative_error(outputs(ungraft(merge(model)), inputs), expected) < 1e-5


def test_an_auto_class_of_peft_loads_a_classifier(tmp_path: Path):
    kind = MODELS["bert for sequences"]
    kind.build().save_pretrained(tmp_path / "base")
    model = graft(type(kind.build()).from_pretrained(tmp_path / "base"), LoraConfig(target_modules=kind.targets))
    expected = outputs(shake(model), kind.inputs())
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    assert relative_error(outputs(theirs, kind.inputs()), expected) < 1e-5


def test_an_output_layer_that_is_not_to_train_is_left_out(tmp_path: Path):
    model = graft(MODELS["llama for sequences"].build(), LoraConfig(modules_to_save=[]))
    assert not [name for name in trainable_parameters(model) if "score" in name]
    save_adapter(model, tmp_path)
    assert read_config_fields(tmp_path)["task_type"] is None  # for PEFT's class expects it in the file
    load_adapter(MODELS["llama for sequences"].build(), tmp_path)
    with refused("leaves out score"):
        graft(MODELS["llama for sequences"].build(), PromptTuningConfig(modules_to_save=[]))


def test_a_file_without_the_module_that_its_config_names_is_refused(tmp_path: Path):
    model = MODELS["bert for sequences"].build()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    adapted.save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: [tensors.pop(key) for key in [*tensors] if "classifier" in key])
    with refused("names 'classifier', and the file has no tensor"):
        load_adapter(MODELS["bert for sequences"].build(), tmp_path)
