"""deepseek-jax inspect."""

from deepseek_jax.checking import require_family
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named, number
from deepseek_jax.errors import UserError

BYTES = {"float32": 4, "bfloat16": 2}


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "inspect",
        run,
        "show a model's layers, parameters, cache size and FLOPs, without allocating it",
        f"""\
{options.OVERRIDES_HELP}

examples:
  deepseek-jax inspect --model v4-pro --length 1048576
  deepseek-jax inspect --config configs/v3_tiny.py --config.model.n_routed_experts=32""",
        takes_overrides=True,
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--model", type=named, metavar="NAME", help="a released model: v1-7b, v2-lite, v3, v4-pro ...")
    given.add_argument(
        "--config", type=named, metavar="FILE", help="a Python file with get_config(), such as configs/v3_tiny.py"
    )
    parser.add_argument(
        "--length", type=number(int, 1), default=4096, metavar="N", help="context length in tokens; default: 4096"
    )
    parser.add_argument(
        "--dtype", choices=tuple(BYTES), default="bfloat16", help="dtype of the cache; default: bfloat16"
    )


def run(args):
    config = _model(args)
    console = runtime.console()
    for table in (_layers(config), _parameters(config), _work(config, args.length, BYTES[args.dtype])):
        console.print(table)


def _model(args):
    if args.model is None:
        experiment = runtime.experiment_of(args.config, args.overrides)
        require_family("language_model", experiment.family, args.config, "inspect shows language models only")
        return experiment.model
    if args.overrides:
        raise UserError("--config.KEY=VALUE overrides keys of a --config; it cannot change a released --model.")
    from deepseek_jax.models.presets import preset

    return preset(args.model)


def _layers(config):
    from deepseek_jax.models.schedule import groups, layer_kinds

    table = runtime.table("layers", "which", "how many", "attention", "feed-forward")
    for layers, kind in ((stack.layers, stack.kind) for stacks in groups(config) for stack in stacks):
        through = f" to {layers[-1]}" if len(layers) > 1 else ""
        step = f" by {layers.step}" if layers.step > 1 else ""
        table.add_row(f"{layers[0]}{through}{step}", str(len(layers)), kind.attention, kind.feed_forward)
    for depth, kind in enumerate(layer_kinds(config)[config.num_hidden_layers :]):
        table.add_row(f"MTP module {depth}", "1", kind.attention, kind.feed_forward)
    table.caption = f"hyper-connections over {config.hc_mult} streams" if config.hc_mult else "plain residuals"
    return table


def _parameters(config):
    from deepseek_jax.models.counts import census

    found = census(config)
    table = runtime.table("parameters", "", "all", "of a token")
    for group, size in found.main.groups.items():
        table.add_row(group, f"{size:,}", f"{found.main.of_a_token(group):,}")
    table.add_section()
    table.add_row("model", f"{found.main.total:,}", f"{found.main.activated:,}")
    if found.mtp.groups:
        table.add_row("MTP modules", f"{found.mtp.total:,}", f"{found.mtp.activated:,}")
    if found.buffers:
        table.add_row("buffers (no gradient)", f"{found.buffers:,}", "")
    return table


def _work(config, length, bytes_a_number):
    from deepseek_jax.models.counts import cache_made, cache_size, multi_head_cache
    from deepseek_jax.models.flops import flops_a_token

    growing, constant = (size * bytes_a_number for size in cache_size(config))
    ours, plain = growing * length + constant, multi_head_cache(config) * bytes_a_number
    table = runtime.table(f"at {length:,} tokens, {bytes_a_number} bytes a number", "", "")
    table.add_row("cache, bytes a token", f"{growing:,.10g}")
    table.add_row("cache, bytes from the start", f"{constant:,}")
    table.add_row("cache, bytes in all", f"{ours:,.0f}")
    table.add_row("with drafts and unfinished blocks", f"{cache_made(config, length) * bytes_a_number:,}")
    table.add_row("multi-head attention's, bytes a token", f"{plain:,}")
    table.add_row("multi-head attention's, bytes in all", f"{plain * length:,} ({plain * length / ours:,.1f} x)")
    table.add_row("forward FLOPs of the last token", f"{flops_a_token(config, length):.4g}")
    return table
