"""The names of the tensors that hold each of our arrays: a layer's prefix and a rule's name, in one of three spellings.

huggingface  the names of V1 to V3.2, and those of Hugging Face's modules for V4
deepseek     V4's own names; the same as huggingface for all earlier models
saved        what Hugging Face's save_pretrained writes for V4: DeepSeek's names, some of them changed; only read here
"""

import dataclasses
import itertools
import re
from collections.abc import Collection

from deepseek_jax.convert.generations import generation_of
from deepseek_jax.convert.rules import ATTENTION, BLOCK, DIRECT_QUERY, MODEL, MTP, Rule, of_your_own
from deepseek_jax.errors import UserError
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.schedule import layers_of

HEADS = {"lm_head.weight", "head.weight"}

# V3's MTP modules each contain a copy of these tensors: we write the copies, and compare them when reading.
MTP_COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}


@dataclasses.dataclass(frozen=True)
class Place:
    """The tensors that hold one of our arrays.

    `names`: tensor names by index into our array's leading dimensions: the layer in its stack, then the expert, as far
    as the array has these; a single () otherwise.
    """

    rule: Rule
    names: dict[tuple[int, ...], str]

    @property
    def leading(self) -> int:
        """How many leading dimensions of our array enumerate tensors."""
        return len(next(iter(self.names)))


def spelling_of(names: Collection[str]) -> str:
    """The spelling of a checkpoint, told from the `names` of its tensors."""
    if "layers.0.attn_norm.weight" in names:
        return "deepseek"
    return "saved" if "model.layers.0.attn_norm.weight" in names else "huggingface"


def place(path: str, config: ModelConfig, spelling: str = "huggingface") -> Place:
    """The place of our array at `path` ("layers/1-3/attention/out") in the parameters or buffers.

    Raises UserError for an array of a released model's config that released checkpoints have no name for.
    """
    path = path.split("/")
    if path[0] == "layers":  # layers / first-last / ...
        layers = layers_of(path[1])
        rule = _layer_rule(path[2:], config, layers[0])
        prefixes = [layer_prefix(number, spelling) for number in layers]
        return _place(rule, prefixes, config, spelling, stacked=True)
    if path[0] == "mtp":  # mtp / depth / ...
        depth = int(path[1])
        inner = path[2] == "block"
        number = config.num_hidden_layers + depth
        rule = _layer_rule(path[3:], config, number) if inner else _find(MTP, path[2:], config)
        # Hugging Face has no names for MTP modules of V4; it keeps DeepSeek's.
        names_of = "deepseek" if config.hc_mult else spelling
        return _place(rule, [mtp_prefix(depth, config)], config, names_of, stacked=False)
    return _place(_find(MODEL, path, config), [""], config, spelling, stacked=False)


def layer_prefix(number: int, spelling: str = "huggingface") -> str:
    return f"layers.{number}." if spelling in ("deepseek", "saved") else f"model.layers.{number}."


def mtp_prefix(depth: int, config: ModelConfig) -> str:
    """The prefix of an MTP module's tensor names; V3 numbers the modules as further layers."""
    return f"mtp.{depth}." if config.hc_mult else layer_prefix(config.num_hidden_layers + depth)


def may_be_left(name: str, config: ModelConfig, names: Collection[str]) -> bool:
    """Whether a checkpoint with tensors `names` may contain `name` although the model does not use it.

    Beyond the last layer only the tensors of MTP modules may be unused; a module is recognised by its `enorm`.
    """
    if name in HEADS:
        return config.tie_word_embeddings
    match = re.match(r"((model\.layers|mtp)\.(\d+)\.)(.*)", name)
    if match is None:
        return False
    if match[4] == "self_attn.rotary_emb.inv_freq":
        return True
    depth = int(match[3]) - (0 if match[2] == "mtp" else config.num_hidden_layers)
    if depth < 0 or f"{match[1]}enorm.weight" not in names:
        return False
    return depth >= config.num_nextn_predict_layers or match[4] in MTP_COPIES


def _place(rule, prefixes, config, spelling, *, stacked):
    name = rule.name(deepseek=spelling in ("deepseek", "saved"))
    experts = range(config.n_routed_experts if rule.by_expert else 1)
    names = {}
    for (layer, prefix), expert in itertools.product(enumerate(prefixes), experts):
        full = prefix + name.format(expert=expert)
        index = (layer,) * stacked + (expert,) * rule.by_expert
        names[index] = _as_saved(full) if spelling == "saved" else full
    return Place(rule, names)


def _as_saved(name):
    """The name that save_pretrained writes in place of one of DeepSeek's names for V4."""
    if name == "head.weight":
        return name
    name = re.sub(r"^embed\.", "embed_tokens.", re.sub(r"^hc_head_", "hc_head.hc_", name))
    return "model." + name.replace(".attn.kv_norm.", ".attn.norm.")


def _layer_rule(path, config, number):
    kind = config.attention_kinds[number]
    of = f" of {kind} attention" if path[0] == "attention" else ""
    rule = _find(BLOCK + ATTENTION.get(kind, ()), path, config, of)
    return DIRECT_QUERY if rule.ours == DIRECT_QUERY.ours and not config.q_lora_rank else rule


def _find(rules, path, config, of=""):
    ours = ".".join(path)
    found = next((rule for rule in rules if rule.ours == ours), None)
    if found is None and generation_of(config) is None:  # no other program reads such a model
        return of_your_own(ours)
    if found is None:
        raise UserError(f"released checkpoints have no name for {ours}{of}; add one to deepseek_jax/convert/rules.py.")
    return found
