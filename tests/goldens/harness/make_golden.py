"""Makes tokenizer.json and expected.json: what `hf` of lm-evaluation-harness finds for the model of goldens/v3.

    pip install 'lm_eval[hf]' && python tests/goldens/harness/make_golden.py

Written against lm_eval 0.4.13, transformers 5.23.0 and torch 2.13.0.
"""

import json
import shutil
import tempfile
from pathlib import Path

import tokenizers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

HERE = Path(__file__).parent
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TEXT = (HERE.parents[2] / "LICENSE").read_text()
PAIRS = [
    ["", "Apache License"],
    ["Licensed under the ", "Apache License"],
    ["TERMS AND CONDITIONS", " FOR USE"],
    *([TEXT[2000:2040], letter] for letter in "abcd"),
    [TEXT[3000:3200], TEXT[3200:3215]],
    [TEXT[2000:4000], TEXT[4000:4040]],
]
ROLLING = [TEXT[5000:5060], TEXT[6000:8000], "x"]
CONTEXTS = [TEXT[1000:1003], TEXT[1100:1160], TEXT[1200:2200]]
GENERATION = [{"until": until, "max_gen_toks": most} for until, most in (([], 20), (["e", "on"], 80))]
GENERATED = [[context, settings] for settings in GENERATION for context in CONTEXTS]


def make_tokenizer():
    """A byte-pair tokenizer of 256 entries, the model's vocabulary, for ASCII text; it puts bos first."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = [letter for letter in tokenizers.pre_tokenizers.ByteLevel.alphabet() if letter.isascii()]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(HERE / "tokenizer.json"))


def requests(arguments: list) -> list[Instance]:
    return [Instance(request_type="", doc={}, arguments=tuple(each), idx=0) for each in arguments]


def found(model: HFLM) -> dict:
    return {
        "loglikelihood": model.loglikelihood(requests(PAIRS)),
        "loglikelihood_rolling": model.loglikelihood_rolling(requests([text] for text in ROLLING)),
        "generate_until": model.generate_until(requests(GENERATED)),
    }


def main():
    make_tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        for name in ("config.json", "model.safetensors"):
            shutil.copy(HERE.parent / "v3" / name, directory)
        shutil.copy(HERE / "tokenizer.json", directory)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "pad_token": EOS}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(settings))
        options = {"pretrained": directory, "device": "cpu", "dtype": "float32", "batch_size": 4}
        expected = {str(bos): found(HFLM(**options, add_bos_token=bos)) for bos in (True, False)}
    given = {"loglikelihood": PAIRS, "loglikelihood_rolling": [[text] for text in ROLLING], "generate_until": GENERATED}
    text = json.dumps({"given": given, "expected by add_bos_token": expected}, indent=1)
    (HERE / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
