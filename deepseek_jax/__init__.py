"""Train, take apart and rebuild DeepSeek's language models in JAX.

model = deepseek_jax.from_pretrained(directory)
scores = model(input_ids).logits
tokens = deepseek_jax.generate(model, prompts, max_new_tokens=16)
states = deepseek_jax.trace(model, input_ids).feed_forward

These names are imported from deepseek_jax/api.py, and jax with it, at their first use, so that `import deepseek_jax`
and the command line stay light.
"""

__all__ = ["Model", "from_config", "from_pretrained", "generate", "loss_and_grads", "save_pretrained", "trace"]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deepseek_jax import api

    return getattr(api, name)


def __dir__():
    return sorted({*globals(), *__all__})
