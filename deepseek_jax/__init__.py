"""Train, take apart and rebuild DeepSeek's language models in JAX.

model = deepseek_jax.from_pretrained(directory)
scores = model(input_ids).logits
tokens = deepseek_jax.generate(model, prompts, max_new_tokens=16)
text = model.tokenizer.decode(tokens[0])
states = deepseek_jax.trace(model, input_ids).feed_forward

experiment = deepseek_jax.resolve("configs/v3_tiny.py", {"train.steps": 100})
scores = deepseek_jax.run_experiment(experiment, "runs/x")

These names are imported from their modules, and jax with most of them, at their first use, so that `import
deepseek_jax` and the command line stay light.
"""

import importlib

_MODULES = {  # by public name: where it is defined
    "Model": "api",
    "ModelConfig": "models.config",
    "Tokenizer": "data.tokenizer",
    "UserError": "errors",
    "from_config": "api",
    "from_pretrained": "api",
    "generate": "api",
    "loss_and_grads": "api",
    "merge": "models.tree",
    "preset": "models.presets",
    "read_rows": "train.reporting.sinks",
    "resolve": "experiment_file",
    "run_experiment": "train.loop",
    "save_pretrained": "api",
    "trace": "api",
}

__all__ = list(_MODULES)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__} - {"importlib"})
