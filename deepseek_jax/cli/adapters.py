"""deepseek-jax adapters."""

import dataclasses

from deepseek_jax.cli import options
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError
from deepseek_jax.files import made_whole


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "adapters",
        None,
        "save low-rank adapters in the format of the library peft, merge them into a model, or subtract them again",
        """\
A run with tune.lora trains adapters (LoRA or DoRA).  `save` writes them in the format of the library peft; `merge`
adds adapters in that format to the weights of a checkpoint, whatever program made either; `unmerge` subtracts LoRA
adapters again, which restores the weights except for rounding.  A run's own adapters need no merging to be used: eval,
generate and convert read the run with its adapters merged.

examples:
  deepseek-jax adapters save runs/lora adapters/
  deepseek-jax adapters merge runs/v3_tiny adapters/ v3_tiny_tuned
  deepseek-jax adapters unmerge v3_tiny_tuned adapters/ v3_tiny_again""",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    save = options.add_verb(actions, "save", run_save, "write the adapters of a run in peft's format", "")
    save.add_argument("workdir", type=named, metavar="RUN", help="run directory, trained with tune.lora.rank above 0")
    save.add_argument("target", type=named, metavar="OUT", help="the directory to write")
    for action, what in (("merge", "add adapters to"), ("unmerge", "subtract adapters from")):
        one = options.add_verb(actions, action, run_merge, f"{what} the weights of a checkpoint", "")
        one.add_argument(
            "source", type=named, metavar="IN", help="a run directory, a released checkpoint or the output of convert"
        )
        one.add_argument("adapters", type=named, metavar="ADAPTERS", help="the directory with the adapters")
        one.add_argument(
            "target",
            type=named,
            metavar="OUT",
            help="the directory to write: safetensors, or for a hybrid network a run directory",
        )
        one.set_defaults(action=action)


def run_save(args):
    from deepseek_jax import record

    lora = record.read(args.workdir).tune.lora
    if not lora.rank:
        raise UserError(f"{args.workdir} has no adapters; train with tune.lora.rank above 0.")
    with made_whole(args.target) as directory:
        from deepseek_jax.train.checkpoints.restore import restore_adapters
        from deepseek_jax.tune import peft

        experiment, adapters = restore_adapters(args.workdir)
        peft.save(directory, experiment.model, adapters, lora)
    print(f"wrote {args.target}: {sum(array.size for one in adapters.values() for array in one.values()):,} numbers")
    for also in _moved_beside(experiment):
        print(f"not included, only in {args.workdir}: {also}")
    if _is_dropped_by_peft(experiment, adapters):
        print(
            "the library peft silently drops adapters of dense and shared feed-forwards in models with routed experts: "
            "give it the output of `deepseek-jax adapters merge`, or train without them (tune.lora.paths)"
        )
    if any(path.endswith("/out_down") for path in adapters):
        print(
            "the library peft cannot read adapters of the single groups of attention/out_down: "
            "give it the output of `deepseek-jax adapters merge`, or train without them (tune.lora.paths)"
        )


def _moved_beside(experiment) -> list[str]:
    """Descriptions of what training changed besides the adapters, for which peft's format has no place."""
    from deepseek_jax.unused import idle_keys

    model, found = experiment.model, []
    if experiment.tune.train:
        found.append(f"the parameters that tune.train={experiment.tune.train!r} trained in full")
    if experiment.family == "supervised":
        if model.convolution.has_batch_norms:
            found.append("the running averages of the batch norms, which training updated")
    elif experiment.router.bias_update_rate and "router.bias_update_rate" not in idle_keys(experiment):
        found.append("the routers' biases, which training updated; router.bias_update_rate=0 keeps them fixed")
    return found


def _is_dropped_by_peft(experiment, adapters) -> bool:
    """Whether peft drops some: version 0.21 takes every gate, up and down projection for a fused expert's."""
    of_tokens = [path for path in adapters if "/feed_forward/" in path and "/experts/" not in path]
    return experiment.family == "language_model" and bool(experiment.model.num_moe_layers and of_tokens)


def run_merge(args):
    with made_whole(args.target) as directory:
        from deepseek_jax.compress import source
        from deepseek_jax.convert import beside, huggingface
        from deepseek_jax.train.checkpoints import any_checkpoint
        from deepseek_jax.tune import peft
        from deepseek_jax.views import lora

        given = any_checkpoint.read(args.source)
        adapters, config = peft.load(args.adapters, given.config)
        params = (lora.merge if args.action == "merge" else lora.unmerge)(given.params, adapters, config)
        if given.experiment.family == "supervised":
            source.write(directory, source.with_sections(dataclasses.replace(given, params=params)))
        else:
            huggingface.save(directory, given.config, params, given.buffers)
            beside.carry(given.directory, directory)
    print(f"wrote {args.target}")
