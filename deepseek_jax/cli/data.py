"""deepseek-jax data prepare, data inspect, data show, data check."""

from pathlib import Path

from deepseek_jax import files
from deepseek_jax.checking import require_family
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError

EXAMPLES = """
examples:
  deepseek-jax data {verb} --config configs/v3_tiny.py
  deepseek-jax data {verb} --source my_texts/ --config.model.vocab_size=4096"""

SHOW = """\
NAME is a labelled set that comes with this package, tfds:NAME, or the path of your own: a .csv, .jsonl or .parquet file
or a directory of such files.  Keys dataset.* and augment.* can be set as in a config; augmentations set by
augment.* are shown.

examples:
  deepseek-jax data show scenes --augment
  deepseek-jax data show photos.csv --config.dataset.columns.image=file --config.dataset.columns.label=kind
  deepseek-jax data show mnist5k --config.augment.image.rotate=10
  deepseek-jax data show services --augment --output texts.html"""

CHECK = """\
Looks for duplicates, leakage between splits, empty or broken records, outliers, doubtful labels, and held-out data that
the training data does not cover.  Writes a page, and for a labelled set also a filter list for dataset.exclude: delete
the lines of records that you want to keep.

Keys dataset.* (for a labelled set) or data.* (for a corpus) can be set as in a config.

examples:
  deepseek-jax data check mnist5k
  deepseek-jax data check code
  deepseek-jax data check mail.jsonl --config.dataset.columns.text=body --config.dataset.columns.label=folder"""


def add_to(verbs):
    data = options.add_verb(verbs, "data", None, "prepare a corpus and its tokenizer, or show and check data", "")
    actions = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, run, summary in (
        ("prepare", run_prepare, "read, split, tokenize and store a corpus, and show its sizes and what was skipped"),
        ("inspect", run_inspect, "show a corpus's sizes, what was skipped, and packed rows as training sees them"),
    ):
        more = options.OVERRIDES_HELP + "\n" + EXAMPLES.format(verb=name)
        parser = options.add_verb(actions, name, run, summary, more, takes_overrides=True)
        given = parser.add_mutually_exclusive_group(required=True)
        given.add_argument(
            "--config", type=named, metavar="FILE", help="take data.* and model.vocab_size from this config"
        )
        given.add_argument(
            "--source",
            type=named,
            metavar="NAME",
            help="a corpus by name (prose, literature, code, mix; operations, which needs data.chat), or a path to "
            "your own texts",
        )
    show = options.add_verb(
        actions,
        "show",
        run_show,
        "write an HTML page that shows a labelled set, and the effect of augmentations on it",
        SHOW,
        takes_overrides=True,
    )
    show.add_argument(
        "name", type=named, metavar="NAME", help="digits, mnist5k, fashion, services, scenes, diabetes, co2 ..."
    )
    show.add_argument("--augment", action="store_true", help="show records before and after each augmentation")
    show.add_argument("--output", type=named, metavar="FILE", help="the page to write; default: NAME.html")
    check = options.add_verb(
        actions, "check", run_check, "look for faults in a labelled set or a corpus", CHECK, takes_overrides=True
    )
    check.add_argument("name", type=named, metavar="NAME", help="a labelled set (see data show), a corpus, or a path")
    check.add_argument("--output", type=named, metavar="FILE", help="the page to write; default: NAME-check.html")
    check.add_argument(
        "--exclude", type=named, metavar="FILE", help="the filter list to write; default: NAME-exclude.txt"
    )


def run_prepare(args):
    """Shows only tables; `inspect` shows rows too."""
    _show(args, rows=False)


def run_inspect(args):
    _show(args, rows=True)


def _show(args, rows: bool):
    from deepseek_jax.experiment_file import resolve

    source = {} if args.source is None else {"data.source": args.source}
    experiment = resolve(args.config, source | args.overrides)
    instead = "`deepseek-jax data show` shows its labelled set"
    require_family("language_model", experiment.family, args.config, instead)
    from deepseek_jax.data import inspect
    from deepseek_jax.data.pipeline import open_corpus
    from deepseek_jax.train.reporting.bars import stages

    console = runtime.console()
    with stages(console) as report:
        corpus = open_corpus(experiment.data, experiment.model.vocab_size, report)
    description = inspect.describe(corpus)
    console.print(inspect.render(description if rows else description | {"rows": {}}))


def run_show(args):
    path = Path(args.output or f"{args.name.replace(':', '_')}.html")
    files.check_file(path)
    from deepseek_jax.data.sets import show
    from deepseek_jax.data.sets.registry import open_set
    from deepseek_jax.experiment_file import of_set

    experiment = of_set(args.name, args.overrides)
    dataset, augment = open_set(experiment.dataset), None
    if any(key.startswith("augment.") for key in args.overrides):
        augment = experiment.augment
    elif args.augment:
        augment = show.shown_augmentation(dataset)
    for note in dataset.notes:
        print(note)
    show.write(path, dataset, augment)
    print(f"wrote {path}")


def run_check(args):
    stem = Path(args.name.replace(":", "_")).expanduser().absolute().stem
    page, listed = Path(args.output or f"{stem}-check.html"), Path(args.exclude or f"{stem}-exclude.txt")
    for path in (page, listed):
        files.check_file(path)
    from deepseek_jax.cli import data_check
    from deepseek_jax.data.quality import filter_list, report
    from deepseek_jax.train.reporting.bars import stages

    if args.exclude and data_check.names_corpus(args.name, args.overrides):
        raise UserError("--exclude is for labelled sets; documents of a corpus cannot be excluded by a list.")
    with stages(runtime.console()) as progress:
        records, findings = data_check.check(args.name, args.overrides, progress)
    for note in records.notes:
        print(note)
    report.write(page, records, findings)
    for finding in findings:
        print(f"{finding.title}: {finding.sentence}")
    print(f"wrote {page}")
    if not records.corpus:
        count = filter_list.write(listed, records, findings)
        print(f"wrote {listed}: leaves {count:,} training records out with --config.dataset.exclude={listed}")
