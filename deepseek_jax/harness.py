"""Models of this package in EleutherAI's lm-evaluation-harness.  Importing this registers them as "deepseek_jax".

    python -m deepseek_jax.harness run --model deepseek_jax --model_args pretrained=runs/x --tasks wikitext

is the harness's own command line, `lm_eval`, which by itself finds no models outside of the harness.
"""

import collections
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from deepseek_jax import checking, disk_cache, record
from deepseek_jax.api import Model
from deepseek_jax.choices import DTYPES
from deepseek_jax.config import CHAT_TEMPLATES
from deepseek_jax.data import chat as chats
from deepseek_jax.data.tokenizer import SPECIAL, TokenizerFile
from deepseek_jax.errors import UserError
from deepseek_jax.infer.generate import new_tokens
from deepseek_jax.infer.likelihood import likelihoods
from deepseek_jax.infer.prompts import before_eos, power_of_two
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.train.checkpoints import any_checkpoint

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise UserError(f"cannot import lm-evaluation-harness ({error}); pip install 'lm_eval>=0.4.13'.") from error

ARGUMENTS = "pretrained", "checkpoint", "dtype", "max_length", "batch_size", "add_bos_token", "seed", "chat", "think"
FIRST_TOKENS = 32  # generated before stop strings are looked for; then as many again, twice as many, ...


@register_model("deepseek_jax")
class HarnessModel(TemplateLM):
    """A model of this package.  With the same weights and tokenizer, its numbers are those of the harness's own `hf`.

    `pretrained`: a directory as for `deepseek-jax eval`, or a Model that has a tokenizer.  `checkpoint`: a step of the
    run, instead of the newest.  `dtype`: that of a released model, instead of the stored one.  `max_length`: how many
    tokens the model sees at once; by default max_position_embeddings, even if a run has trained on shorter rows.
    `add_bos_token`: begin every text with bos, as in training; as in `hf`, loglikelihood_rolling then scores that bos
    too.  `seed`: of sampling.  `device` and `max_batch_size`, which the harness passes to all models, have no effect.

    `chat`: v3, v3.2 or v4, the template of conversations, which the harness asks for with --apply_chat_template; by
    default the run's `data.chat`.  `think`: let the model reason first, which is not part of the answer that is scored.
    In conversations the names of control tokens are these tokens, as in `hf`; in other texts they are ordinary text.
    """

    def __init__(
        self,
        pretrained: str | Path | Model,
        checkpoint: int | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
        add_bos_token: bool = True,
        seed: int = 0,
        chat: str | None = None,
        think: bool = False,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown,
    ):
        super().__init__()
        if unknown:
            raise UserError(f"this model takes no {next(iter(unknown))}; it takes {', '.join(ARGUMENTS)}.")
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise UserError(f"batch_size is {batch_size}; give the number of texts that are scored at once.")
        self.batch_size, self.add_bos_token = int(batch_size), add_bos_token
        if isinstance(pretrained, Model):
            self.model, trained_as = pretrained, ""
        else:
            self.model, trained_as = _read(Path(str(pretrained)), checkpoint, dtype)
        self.tokenizer = self.model.tokenizer
        if self.tokenizer is None:
            raise UserError("the model has no tokenizer.json beside it, which is needed for text; copy it there.")
        self.max_length = max_length or self.model.config.max_position_embeddings
        self._seeds = itertools.count(seed)
        if chat is not None:
            checking.choice("chat", chat, CHAT_TEMPLATES)
        self.chat, self.think = chat or trained_as, bool(think)
        if self.think and not chats.has_reasoning(self.chat):
            raise UserError("think needs a template with reasoning; add chat=v3.2 or chat=v4.")

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context."""
        return self.tokenizer.bos

    @property
    def tokenizer_name(self) -> str:
        """Under this the harness keeps conversations as text (--cache_requests), which depend on the template alone."""
        return f"{self.chat}-think" if self.think else self.chat

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The name of the template, which the harness writes down."""
        return self.chat

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The conversation as text up to the answer, or to its given beginning without `add_generation_prompt`."""
        if not self.chat:
            raise UserError("--apply_chat_template needs the model's template; add chat=v3, v3.2 or v4 to model_args.")
        roles = [message["role"] for message in chat_history]
        if not chats.in_turns(roles + ["assistant"] * add_generation_prompt):
            raise UserError(f"a conversation has the roles {', '.join(roles)}; user and assistant must take turns.")
        return chats.spell(chat_history, self.chat, self.think)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        if self.chat and string.startswith(SPECIAL["bos"]):
            return chats.encode_spelled(string, self.tokenizer)
        begins = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return [self.tokenizer.bos] * begins + self.tokenizer.encode(string)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Those of whole texts, in windows of at most `max_length` tokens."""
        windows = [
            (place, *make_disjoint_window(window))
            for place, request in enumerate(requests)
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
        ]
        found = self._loglikelihood_tokens([(None, *window) for _, *window in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for (place, *_), (nats, _) in zip(windows, found, strict=True):
            totals[place] += nats
        return totals

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        """Those of (texts, context, continuation).  Requests that differ only in the last token share a row."""
        by_row = collections.defaultdict(list)
        for place, (_, context, continuation) in enumerate(requests):
            if len(continuation) > self.max_length:
                raise UserError(f"max_length is {self.max_length}; a continuation has {len(continuation)} tokens.")
            whole = (*(context or [self.prefix_token_id]), *continuation)
            by_row[whole[-self.max_length - 1 : -1]].append(place)
        rows = sorted(by_row, key=len, reverse=True)
        found = [None] * len(requests)
        bar = tqdm(total=len(requests), desc="deepseek_jax: log-likelihoods", disable=disable_tqdm)
        with bar, self.model.exact_products():
            for row, likelihood in zip(rows, likelihoods(self._parts, rows, self.batch_size), strict=True):
                for place in by_row[row]:
                    texts, _, continuation = requests[place]
                    found[place] = likelihood.of_ending(continuation)
                    if texts is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, found[place])
                bar.update(len(by_row[row]))
        return found

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What the model adds to each context, without the stop string or eos that ends it."""
        contexts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        by_settings = collections.defaultdict(list)
        for place in sorted(range(len(requests)), key=lambda place: -len(contexts[place])):
            by_settings[json.dumps(requests[place].args[1], sort_keys=True)].append(place)
        found = [""] * len(requests)
        bar = tqdm(total=len(requests), desc="deepseek_jax: generating", disable=disable_tqdm)
        with bar, self.model.exact_products():
            for places in by_settings.values():
                most, *settings = _settings(requests[places[0]].args[1])
                room = self.max_length - most
                if room < 1:
                    raise UserError(f"max_gen_toks is {most}; it must be less than max_length, {self.max_length}.")
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    texts = self._continued([contexts[place][-room:] for place in batch], most, *settings)
                    for place, text in zip(batch, texts, strict=True):
                        found[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    bar.update(len(batch))
        return found

    def _continued(self, prompts: list[list[int]], most: int, until: list[str], sampling: Sampling) -> list[str]:
        """What follows each prompt.  A compiled loop stops at eos only, so it runs a few times, ever longer."""
        wanted = len(prompts)
        prompts = prompts + prompts[-1:] * (self.batch_size - wanted)  # batches of one size need one program
        eos, new_BN, texts = self.tokenizer.eos, np.zeros((self.batch_size, 0), np.int32), [""] * wanted
        while (made := new_BN.shape[1]) < most:
            rows = [[*prompt, *new] for prompt, new in zip(prompts, new_BN.tolist(), strict=True)]
            how = {"eos": eos, "sampling": sampling, "seed": next(self._seeds)}
            how["padded_to"] = power_of_two(max(map(len, rows)))
            more_BN = new_tokens(self._parts, rows, min(max(FIRST_TOKENS, made), most - made), **how)
            new_BN = np.concatenate([new_BN, more_BN], axis=1)
            texts = [self._answer(self._decoded(new)) for new in before_eos(new_BN[:wanted], eos)]
            stopped = [any(stop in text for stop in until) for text in texts]
            if np.all(stopped | (new_BN[:wanted] == eos).any(axis=1)):
                break
        return [postprocess_generated_text(text, until, think_end_token=None) for text in texts]

    def _answer(self, text: str) -> str:
        """What comes after the reasoning, if there is to be any; "" if that has not ended."""
        return text.partition(chats.THOUGHT)[2].lstrip() if self.think else text

    def _decoded(self, tokens: list[int]) -> str:
        unseen = {getattr(self.tokenizer, name) for name in SPECIAL}
        return self.tokenizer.decode([token for token in tokens if token not in unseen])

    @property
    def _parts(self):
        return self.model.graphdef, self.model.params, self.model.buffers


def _settings(given: dict) -> tuple[int, list[str], Sampling]:
    """(most new tokens, stop strings, how tokens are chosen) of a task's generation_kwargs."""
    given = normalize_gen_kwargs(given)
    most, until = given.pop("max_gen_toks"), [stop for stop in given.pop("until") if stop]
    chosen = {name: given.pop(name) for name in ("temperature", "top_k", "top_p") if name in given}
    if not given.pop("do_sample"):
        chosen = {}
    if given.pop("num_beams", 1) != 1 or given:
        raise UserError(f"generation_kwargs has {', '.join(given) or 'num_beams'}, which is not known here.")
    return most, until, Sampling(**chosen)


def _read(directory: Path, step: int | None, dtype: str | None) -> tuple[Model, str]:
    """(the model, the template of the conversations that it was trained on, if any)"""
    checking.require_family("language_model", record.family(directory), directory, "the harness scores language models")
    if dtype is not None:
        checking.choice("dtype", dtype, DTYPES)
        if record.kind(directory) == "run":
            raise UserError(f"dtype is set, but {directory} is a run, scored as it was trained; leave dtype out.")
    found = any_checkpoint.read(directory, step, dtype=dtype)
    tokenizer = TokenizerFile.of(directory, found.config.vocab_size)
    model = Model(found.config, found.graphdef, found.params, found.buffers, tokenizer_file=tokenizer)
    return model, found.experiment.data.chat


def main() -> int:
    """The harness's command line; returns the exit status: 2 after an error that the user can fix."""
    from lm_eval.__main__ import cli_evaluate

    disk_cache.keep_programs()
    try:
        cli_evaluate()
    except UserError as error:
        print(f"deepseek_jax.harness: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
