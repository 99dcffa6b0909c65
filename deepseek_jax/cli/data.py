"""deepseek-jax data prepare, deepseek-jax data inspect."""

from deepseek_jax.cli import options, runtime

EXAMPLES = """
examples:
  deepseek-jax data {verb} --config configs/v3_tiny.py
  deepseek-jax data {verb} --source my_texts/ --config.model.vocab_size=4096"""


def add_to(verbs):
    data = options.add_verb(verbs, "data", None, "prepare a corpus and its tokenizer, or look into one", "")
    actions = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, run, summary in (
        ("prepare", run_prepare, "read, split, tokenize and store a corpus, and show sizes and what was skipped"),
        ("inspect", run_inspect, "show sizes of a corpus, what was skipped, and packed rows as training sees them"),
    ):
        more = options.OVERRIDES_HELP + "\n" + EXAMPLES.format(verb=name)
        parser = options.add_verb(actions, name, run, summary, more, takes_overrides=True)
        given = parser.add_mutually_exclusive_group(required=True)
        given.add_argument("--config", metavar="FILE", help="take data.* and model.vocab_size from this config")
        given.add_argument("--source", metavar="NAME", help="a corpus (prose, literature, code, mix) or a path")


def run_prepare(args):
    """The tables alone: the rows are what inspect is for."""
    _show(args, rows=False)


def run_inspect(args):
    _show(args, rows=True)


def _show(args, rows: bool):
    from deepseek_jax.experiment_file import resolve

    source = {"data.source": args.source} if args.source else {}
    experiment = resolve(args.config, source | args.overrides)
    runtime.prepare()
    from rich.console import Console

    from deepseek_jax.data import inspect
    from deepseek_jax.data.pipeline import open_corpus
    from deepseek_jax.train.progress import preparing

    console = Console()
    with preparing(console) as report:
        corpus = open_corpus(experiment.data, experiment.model.vocab_size, report)
    description = inspect.describe(corpus)
    console.print(inspect.render(description if rows else description | {"rows": {}}))
