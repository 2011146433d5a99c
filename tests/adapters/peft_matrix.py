"""Each documented setting of PEFT on tiny models of several kinds, saved by one library and loaded by the other.

`python -m tests.adapters.peft_matrix [WORD …]` prints the outcomes of every case whose name contains all words: of
PEFT's file here, and of our file in PEFT. Outcomes:

    equal           the same logits, and another result than the base alone
    refused         a TsugikiError, as a setting was given or a file was loaded
    no setting      Tsugiki has no such setting; its files cannot have it either
    peft cannot     PEFT refuses the case, or does not read its own file back
    no effect       the same logits, which are those of the base
    wrong           other logits
    exception       anything else was raised
"""

import contextlib
import copy
import dataclasses
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.utils import logging

from tests.tiny import CONFIGS, ids, relative_error, seeded, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, load_adapter, save_adapter
from tsugiki.methods import IA3Config, LNTuningConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Model:
    """A kind of model, and what PEFT calls its parts."""

    task: str | None
    build: Callable[[], Any]
    targets: list[str]
    """Two layers of each block; the second has an input of another width, if there is such."""
    embedding: str
    head: str | None
    blocks: str
    """The last component of the name of the list of blocks."""
    norm: str
    inputs: Callable[[], dict[str, torch.Tensor]]


def _ids() -> dict[str, torch.Tensor]:
    return {"input_ids": ids()}


def _pairs() -> dict[str, torch.Tensor]:
    return {"input_ids": ids(), "decoder_input_ids": ids(seed=2)}


def _sound() -> dict[str, torch.Tensor]:
    generator = seeded(0)
    return {"input_features": torch.randn(2, 80, 128, generator=generator), "decoder_input_ids": ids(seed=2)}


def _built(auto: Any, kind: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        torch.manual_seed(0)
        model = auto.from_config(transformers.AutoConfig.for_model(kind, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 1 else 0.05))
        return model.eval()

    return build


_ENCODER = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_BERT = {**_ENCODER, "intermediate_size": 48, "num_labels": 3}
_BART = {
    "vocab_size": 96,
    "d_model": 32,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
       {"layers": 2, "attention_heads": 4, "ffn_dim": 48}.items()},
}  # fmt: skip
_WHISPER = {**_BART, "max_source_positions": 64, "pad_token_id": 0, "decoder_start_token_id": 1}
_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_QA_MODELS = transformers.AutoModelForQuestionAnswering
_SEQ_CLS = transformers.AutoModelForSequenceClassification
_TOKEN_CLS = transformers.AutoModelForTokenClassification
_SEQ2SEQ = transformers.AutoModelForSeq2SeqLM


def _causal(kind: str, targets: list[str], embedding: str, head: str, blocks: str, norm: str) -> Model:
    return Model("CAUSAL_LM", lambda: tiny_model(kind), targets, embedding, head, blocks, norm, _ids)


def _encoder(task: str, auto: Any, kind: str = "bert", **settings: Any) -> Model:
    build = _built(auto, kind, **{**_BERT, **settings})
    return Model(task, build, ["query", "value"], "word_embeddings", None, "layer", "LayerNorm", _ids)


def _decoder(task: str, auto: Any, kind: str, **settings: Any) -> Model:
    build = _built(auto, kind, **CONFIGS[kind], num_labels=3, **settings)
    return Model(task, build, *_LIKE_LLAMA[:2], None, "layers", "input_layernorm", _ids)


_LIKE_LLAMA = (["q_proj", "down_proj"], "embed_tokens", "lm_head", "layers")
_LIKE_BART = ("layers", "self_attn_layer_norm")
_UNTIED = {**_T5, "tie_word_embeddings": False, "decoder_start_token_id": 0}
_SPEECH = transformers.AutoModelForSpeechSeq2Seq
MODELS: dict[str, Model] = {
    "gpt2": _causal("gpt2", ["c_attn", "c_fc"], "wte", "lm_head", "h", "ln_1"),
    **{kind: _causal(kind, *_LIKE_LLAMA, "input_layernorm") for kind in ("llama", "gemma3_text", "qwen3")},
    "opt": _causal("opt", ["q_proj", "fc2"], "embed_tokens", "lm_head", "layers", "final_layer_norm"),
    "gpt_neox": _causal("gpt_neox", ["query_key_value", "dense"], "embed_in", "embed_out", "layers", "input_layernorm"),
    "gptj": _causal("gptj", ["q_proj", "fc_out"], "wte", "lm_head", "h", "ln_1"),
    "t5": Model("SEQ_2_SEQ_LM", _built(_SEQ2SEQ, "t5", **_UNTIED), ["q", "wo"], "shared", "lm_head", "block",
                "layer_norm", _pairs),
    "bart": Model("SEQ_2_SEQ_LM", _built(_SEQ2SEQ, "bart", **_BART), ["q_proj", "fc2"], "shared", "lm_head",
                  *_LIKE_BART, _pairs),
    "whisper": Model(None, _built(_SPEECH, "whisper", **_WHISPER), ["q_proj", "fc2"], "embed_tokens", "proj_out",
                     *_LIKE_BART, _sound),
    "bert for sequences": _encoder("SEQ_CLS", _SEQ_CLS),
    "roberta for sequences": _encoder("SEQ_CLS", _SEQ_CLS, "roberta", pad_token_id=1),
    "llama for sequences": _decoder("SEQ_CLS", _SEQ_CLS, "llama", pad_token_id=0),
    "bert for tokens": _encoder("TOKEN_CLS", _TOKEN_CLS),
    "qwen3 for tokens": _decoder("TOKEN_CLS", _TOKEN_CLS, "qwen3"),
    "bert for questions": _encoder("QUESTION_ANS", _QA_MODELS, num_labels=2),
    "bert": _encoder("FEATURE_EXTRACTION", transformers.AutoModel),
}  # fmt: skip

OURS: dict[str, Any] = {
    one.__name__: one
    for one in (LoraConfig, IA3Config, LNTuningConfig, PromptTuningConfig, PrefixTuningConfig, PromptEncoderConfig)
}
Settings = dict[str, Any]
_SMALL: dict[str, Settings] = {
    "AdaLoraConfig": {"total_step": 10},
    "AdaptionPromptConfig": {"adapter_len": 2, "adapter_layers": 1},
    "C3AConfig": {"block_size": 8},
    "CartridgeConfig": {"num_virtual_tokens": 4},
    "MissConfig": {"r": 4},
    "RoadConfig": {"group_size": 8},
    "ShiraConfig": {"r": 2},
    "VBLoRAConfig": {"vector_length": 8},
    "WaveFTConfig": {"n_frequency": 20},
}
"""Settings with which the methods work on a tiny model."""


def lora_settings(model: Model) -> dict[str, Settings]:
    """The documented settings of LoRA, by a name for each case."""
    first, second = model.targets
    ends = [model.embedding, *([model.head] if model.head else [])]
    two = {"target_modules": [first, second]}
    cases: dict[str, Settings] = {
        "targets": two,
        "r and alpha": {**two, "r": 3, "lora_alpha": 20},
        "a regular expression": {"target_modules": rf".*\.1\..*\.{second}"},
        "all-linear": {"target_modules": "all-linear"},
        "default targets": {},
        "exclude by name": {**two, "exclude_modules": [second]},
        "exclude by expression": {**two, "exclude_modules": r".*\.0\..*"},
        "layers_to_transform": {**two, "layers_to_transform": [1]},
        "layers_to_transform, an integer": {**two, "layers_to_transform": 1},
        "layers_to_transform, none": {**two, "layers_to_transform": []},
        "layers_pattern": {**two, "layers_to_transform": [0], "layers_pattern": model.blocks},
        "layers_pattern, a list": {**two, "layers_to_transform": [0], "layers_pattern": ["foo", model.blocks]},
        "layers_pattern, empty": {**two, "layers_to_transform": [1], "layers_pattern": ""},
        "layers_pattern, an empty list": {**two, "layers_to_transform": [1], "layers_pattern": []},
        "rank_pattern": {**two, "rank_pattern": {first: 2, rf".*\.1\..*{second}": 5}},
        "alpha_pattern": {**two, "alpha_pattern": {first: 2, rf".*\.1\..*{second}": 5}},
        "rslora": {**two, "use_rslora": True},
        "rslora, rank_pattern": {**two, "use_rslora": True, "rank_pattern": {first: 2}},
        "dora": {**two, "use_dora": True},
        "dora on embedding": {"target_modules": [first, model.embedding], "use_dora": True},
        "dropout": {**two, "lora_dropout": 0.1},
        "bias all": {**two, "bias": "all"},
        "bias lora_only": {**two, "bias": "lora_only"},
        "lora_bias": {**two, "lora_bias": True},
        "gaussian": {**two, "init_lora_weights": "gaussian"},
        "orthogonal": {**two, "init_lora_weights": "orthogonal"},
        "pissa": {**two, "init_lora_weights": "pissa"},
        "olora": {**two, "init_lora_weights": "olora"},
        "mica": {**two, "init_lora_weights": "mica"},
        "embedding": {"target_modules": [first, model.embedding]},
        "embedding and head": {"target_modules": [first, *ends]},
        "saved embedding": {**two, "modules_to_save": [model.embedding]},
        "saved embedding and head": {**two, "modules_to_save": ends},
        "saved norm": {**two, "modules_to_save": [model.norm]},
        "saved classifier": {**two, "modules_to_save": ["classifier", "score"]},
        "tokens": {**two, "trainable_token_indices": [3, 5, 7]},
        "tokens by name": {**two, "trainable_token_indices": {model.embedding: [3, 5]}},
        "tokens of embedding and head": {**two, "trainable_token_indices": {end: [3, 5] for end in ends}},
        "tokens, tying ensured": {**two, "trainable_token_indices": [3, 5], "ensure_weight_tying": True},
        "embedding, tying ensured": {"target_modules": [first, model.embedding], "ensure_weight_tying": True},
        "saved embedding, tying ensured": {**two, "modules_to_save": [model.embedding], "ensure_weight_tying": True},
        "layer_replication": {**two, "layer_replication": [[0, 2], [1, 2]]},
        "target_parameters": {"target_modules": [], "target_parameters": [f"{first}.weight"]},
        "use_bdlora": {**two, "use_bdlora": peft.tuners.lora.config.BdLoraConfig(target_modules_bd_a=[first])},
        "alora": {**two, "alora_invocation_tokens": [3, 4]},
        "use_qalora": {**two, "use_qalora": True},
        "corda": {**two, "init_lora_weights": "corda"},
        "kasa": {**two, "kasa_config": peft.KasaConfig()},
        "velora": {**two, "velora_config": peft.VeloraConfig()},
        "monteclora": {**two, "monteclora_config": peft.MontecloraConfig()},
        "no layer": {"target_modules": ["foo"]},
    }
    return cases


def other_settings(model: Model) -> dict[str, tuple[str, Settings]]:
    """Cases of the other methods that Tsugiki has, each with the name of its config class."""
    first, second = model.targets
    norm, saved = {"target_modules": [model.norm]}, {"modules_to_save": [model.norm]}
    soft, encoder = {"num_virtual_tokens": 3}, {"num_virtual_tokens": 3, "encoder_hidden_size": 8}
    return {
        "ia3": ("IA3Config", {"target_modules": [first, second], "feedforward_modules": [second]}),
        "ia3, default": ("IA3Config", {}),
        "ia3, saved norm": ("IA3Config", {"target_modules": [first], "feedforward_modules": [], **saved}),
        "norms": ("LNTuningConfig", norm),
        "norms, default": ("LNTuningConfig", {}),
        "norms, saved embedding": ("LNTuningConfig", {**norm, "modules_to_save": [model.embedding]}),
        "prompt": ("PromptTuningConfig", soft),
        "prompt, saved norm": ("PromptTuningConfig", {**soft, **saved}),
        "prefix": ("PrefixTuningConfig", soft),
        "prefix with projection": ("PrefixTuningConfig", {**encoder, "prefix_projection": True}),
        "p-tuning": ("PromptEncoderConfig", encoder),
        "p-tuning, LSTM": ("PromptEncoderConfig", {**encoder, "encoder_reparameterization_type": "LSTM"}),
        "token embeddings": ("TrainableTokensConfig", {"target_modules": [model.embedding], "token_indices": [3, 5]}),
    }


def other_methods(model: Model) -> dict[str, tuple[str, Settings]]:
    """A case for each method of PEFT that Tsugiki does not have."""
    ours = {*OURS, "TrainableTokensConfig"}
    names = [one.__name__ for one in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.values() if one.__name__ not in ours]
    targeted = {name: hasattr(getattr(peft, name), "target_modules") for name in names if hasattr(peft, name)}
    return {
        name: (name, {**({"target_modules": model.targets[:1]} if has else {}), **_SMALL.get(name, {})})
        for name, has in targeted.items()
    }


def cases() -> dict[str, tuple[str, str, Settings]]:
    """All cases: name -> model, config class, settings."""
    found: dict[str, tuple[str, str, Settings]] = {}
    for kind, model in MODELS.items():
        for name, settings in lora_settings(model).items():
            found[f"{kind}: lora, {name}"] = (kind, "LoraConfig", settings)
        for name, (config, settings) in other_settings(model).items():
            found[f"{kind}: {name}"] = (kind, config, settings)
    for name, (config, settings) in other_methods(MODELS["llama"]).items():
        found[f"llama: {name}"] = ("llama", config, settings)
    return found


@torch.no_grad()
def outputs(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model computes: logits, the two of a question's answer, or hidden states."""
    result = model.eval()(**inputs)
    if "start_logits" in result:
        return torch.stack([result.start_logits, result.end_logits])
    return result.logits if "logits" in result else result.last_hidden_state


def compared(expected: torch.Tensor, found: torch.Tensor, base: torch.Tensor) -> str:
    """The outcome of a case in which nothing was raised."""
    if found.dim() == expected.dim() == 3:  # PEFT's outputs include those of a prompt
        tokens = base.shape[-2]
        expected, found = expected[:, -tokens:], found[:, -tokens:]
    if found.shape != expected.shape or not relative_error(found, expected) < _TOLERANCE:
        error = relative_error(found, expected) if found.shape == expected.shape else "another shape"
        return f"wrong {error:.2g}" if isinstance(error, float) else f"wrong: {error}"
    return "equal" if not torch.equal(expected, base) else "no effect"


def _shaken(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B.default.bias"):
            parameter.requires_grad_(True)
    return shake(model)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the libraries print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def from_peft(kind: str, config: str, settings: Settings, folder: Path) -> str:
    """Save an adapter with PEFT, load it with Tsugiki."""
    model = MODELS[kind]
    theirs = model.build()
    inputs = model.inputs()
    base = outputs(theirs, inputs)
    try:
        adapted = _shaken(peft.get_peft_model(theirs, getattr(peft, config)(task_type=model.task, **settings)))
        expected = outputs(adapted, inputs)
        adapted.save_pretrained(folder)
    except Exception as error:
        return f"peft cannot: {line_of(error)}"

    def here() -> str:
        found = outputs(load_adapter(model.build(), folder), inputs)
        try:
            again = outputs(peft.PeftModel.from_pretrained(model.build(), folder), inputs)
        except Exception as error:
            return f"peft cannot read its own file: {line_of(error)}"
        outcome = compared(again, found, base)
        if relative_error(again, expected) > _TOLERANCE:
            return f"peft reads its own file otherwise, and it is {outcome} here"
        return outcome

    return tried(here, folder)


def to_peft(kind: str, config: str, settings: Settings, folder: Path) -> str:
    """Save an adapter with Tsugiki, load it with PEFT."""
    model, ours = MODELS[kind], MODELS[kind].build()
    inputs = model.inputs()
    base = outputs(ours, inputs)
    if config not in OURS or not settings.keys() <= {one.name for one in dataclasses.fields(OURS[config])}:
        return "no setting"

    def there() -> str:
        graft(ours, OURS[config](**settings))
        expected = outputs(shake(ours), inputs)
        save_adapter(ours, folder)
        try:
            found = outputs(peft.PeftModel.from_pretrained(model.build(), folder), inputs)
        except Exception as error:
            if _peft_cannot(kind, config, settings):
                return f"peft cannot: {line_of(error)}"
            return f"wrong: PEFT raises {type(error).__name__}: {line_of(error)}"
        return compared(expected, found, base)

    return tried(there, folder)


def _peft_cannot(kind: str, config: str, settings: Settings) -> bool:
    """Whether PEFT raises an error for this case without us."""
    model = MODELS[kind]
    try:
        outputs(
            peft.get_peft_model(model.build(), getattr(peft, config)(task_type=model.task, **settings)), model.inputs()
        )
    except Exception:
        return True
    return False


def tried(compare: Callable[[], str], folder: Path) -> str:
    """The outcome of a comparison in which Tsugiki may refuse the case."""
    try:
        return compare()
    except TsugikiError as error:
        return f"refused: {line_of(error, str(folder))}"
    except Exception as error:
        return f"exception: {type(error).__name__}: {line_of(error)}"


def line_of(error: Exception, *hidden: str) -> str:
    text = " ".join(str(error).split())
    for part in hidden:
        text = text.replace(part, "FOLDER")
    return text[:220]


def run(name: str) -> tuple[str, str]:
    """The outcomes of a case: PEFT's file here, and our file in PEFT."""
    kind, config, settings = cases()[name]
    with tempfile.TemporaryDirectory() as folder, quiet():
        return (
            from_peft(kind, config, copy.deepcopy(settings), Path(folder) / "theirs"),  # PEFT changes lists
            to_peft(kind, config, settings, Path(folder) / "ours"),
        )


def kind_of(outcome: str) -> str:
    """The outcome without its details."""
    return outcome.partition(":")[0].split(" 0.")[0].split(" 1")[0].split(" read")[0]


def main(words: list[str]) -> None:
    """Print the outcomes of each case whose name contains all words."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in cases():
        if all(word in name for word in words):
            print(name, *run(name), sep=" | ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
