"""Pretrained models that are already here, opened without a download and without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from patterncc.errors import BackendError, PatternError, PatternValueError
from patterncc.integrations.hf.modules import attention_modules
from patterncc.stack import Stack

Kind = Literal["causal", "encoder"]

PACKAGED = ("glassllm", "minilm")
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
MOST_CONFIG = 2**20  # bytes of a JSON file that is read beside a model
UNLIMITED = 2**31  # tokenizers write a huge number where they know no longest sequence


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with its tokenizer, ready to be run without gradients.

    kind: "causal" models are judged by their next tokens, "encoder" models by their embeddings.
    encode: text to token ids, without special tokens; `before` and `after` are the special ones
    that the tokenizer puts around a text.  longest: tokens that the model takes, None for no limit.
    pooling: how an encoder's states become one embedding: their mean, or the first token's.
    """

    name: str
    kind: Kind
    model: Any
    encode: Callable[[str], list[int]]
    longest: int | None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pooling: Literal["mean", "first"] = "mean"

    @property
    def layers(self) -> int:
        """Attention layers, counted as `pc.hf.apply` does."""
        return 1 + max(f.layer for f in attention_modules(self.model))

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: ids at or above it cannot be looked up."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def own_stack(self) -> Stack | None:
        """The attention that the model's own config describes; None where it is not known."""
        try:
            return Stack.from_hf(self.model.config.to_dict())
        except PatternError:
            return None


def open_model(where: str) -> Pretrained:
    """A model by its folder, or one of the two that install as packages: glassllm and minilm.

    A folder holds config.json, weights as safetensors and a tokenizer, as save_pretrained writes
    them.  Decoder-only models with a language head are "causal", any other without a decoder an
    "encoder".  Nothing is downloaded, no code of the folder runs, no pickle is read.

    Raises PatternValueError for a folder that is not there, BackendError for one that cannot be
    opened so, for an encoder-decoder, and for a model whose attention cannot be replaced.
    """
    folder = Path(where)
    if where in PACKAGED and not folder.is_dir():
        from patterncc.fidelity import pretrained

        return pretrained.glassllm() if where == "glassllm" else pretrained.minilm()
    if not folder.is_dir():
        raise PatternValueError(
            f"fidelity: no folder {where!r}; MODEL is a folder with a transformers model, or "
            f"{' or '.join(PACKAGED)}; nothing is downloaded"
        )
    return from_folder(folder, where)


def from_folder(folder: Path, name: str) -> Pretrained:
    """`open_model` on a folder that is there."""
    _check_files(folder)
    with quiet():
        config = _config(folder)
        kind = _kind(config, name)
        model = _weights(folder, config, kind)
        tokenizer = _tokenizer(folder)
    attention_modules(model)  # refuses a model that can carry no pattern
    before, after = _around(tokenizer)
    text = config.get_text_config()
    known = (getattr(text, "max_position_embeddings", None), tokenizer.model_max_length)
    limits = [x for x in known if isinstance(x, int) and 0 < x < UNLIMITED]
    return Pretrained(
        name=name,
        kind=kind,
        model=model,
        encode=lambda words: list(
            tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
        ),
        longest=min(limits, default=None),
        before=before,
        after=after,
        pooling=_pooling(folder),
    )


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BackendError(
            f"{folder}: no config.json, so this is not a folder of a transformers model; name the "
            "one that save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        found = f"its weights are pickled ({', '.join(pickled[:3])})" if pickled else "no weights"
        raise BackendError(
            f"{folder}: {found}; patterncc reads safetensors only, since a pickle can run any "
            "code: where you trust the file, load it once and write it again with "
            "model.save_pretrained(folder)"
        )
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        raise BackendError(
            f"{folder}: no tokenizer ({', '.join(_VOCABULARIES[:4])}); write it there with "
            "tokenizer.save_pretrained(folder)"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its progress bars and reports: what matters is raised here."""
    logging = _transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise BackendError(
            "fidelity needs transformers 5.17 or newer; install it with: pip install "
            "'patterncc[hf]'"
        ) from None
    return transformers


def _config(folder: Path) -> Any:
    try:
        return _transformers().AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds: OSError, KeyError, ValueError, the hub's own
        raise BackendError(
            f"{folder}/config.json: transformers {_transformers().__version__} does not know this "
            f"model: {_first_line(error)}"
        ) from None


def _kind(config: Any, name: str) -> Kind:
    if getattr(config, "is_encoder_decoder", False):
        raise BackendError(
            f"{name}: {config.model_type} is an encoder-decoder; fidelity takes decoder-only "
            "language models and encoders (pc.hf.apply puts patterns into the others too)"
        )
    if config.architectures:
        return "causal" if config.architectures[0].endswith(_CAUSAL) else "encoder"
    from transformers.models.auto import modeling_auto as known

    masked = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    head = config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "causal" if head and not masked else "encoder"


def _weights(folder: Path, config: Any, kind: Kind) -> Any:
    import torch

    library = _transformers()
    loader = library.AutoModelForCausalLM if kind == "causal" else library.AutoModel
    try:
        model, told = loader.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise BackendError(f"{folder}: cannot be loaded: {_first_line(error)}") from None
    lacking = sorted(key for key in told["missing_keys"] if "pooler" not in key)
    if lacking:
        raise BackendError(
            f"{folder}: the weights lack {', '.join(lacking[:3])} and {len(lacking)} in all, which "
            "would be made up at random; use the whole model's files"
        )
    return model.eval()


def _tokenizer(folder: Path) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise BackendError(
            f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}"
        ) from None


def _around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that a tokenizer puts before and after a text."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def _pooling(folder: Path) -> Literal["mean", "first"]:
    """What sentence-transformers wrote beside the model; the mean where it wrote nothing."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file() or file.stat().st_size > MOST_CONFIG:
        return "mean"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise BackendError(f"{file}: not JSON; remove it to pool by the mean") from None
    return "first" if isinstance(told, dict) and told.get("pooling_mode_cls_token") else "mean"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
