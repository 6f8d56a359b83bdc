"""`python -m macaron.legacy bert CHECKPOINT --dict dict.txt --out DIR`: convert a BERT or classifier of the original.

    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    import macaron.bert

    model, tokenizer = (auto.from_pretrained("DIR") for auto in (AutoModelForSequenceClassification, AutoTokenizer))

Translation models of the original become fairseq checkpoints, by `macaron convert`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from macaron.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    return run(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m macaron.legacy",
        description="Convert models of the original Macaron implementation.",
        epilog="Translation models are converted by `macaron convert`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bert = commands.add_parser(
        "bert",
        help="a pre-trained BERT or a classifier, into a folder of Hugging Face",
        description="Write a folder that transformers' Auto classes load after `import macaron.bert`: model, tokenizer "
        "and, where the checkpoint has the state of Adam, optimizer.pt for torch.optim.AdamW.",
    )
    bert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the original checkpoint")
    bert.add_argument(
        "--dict", type=Path, required=True, metavar="FILE", help="dict.txt of the data that it was trained on"
    )
    bert.add_argument(
        "--bpe-codes",
        type=Path,
        metavar="FILE",
        help="subword-nmt's codes that the data was split by, for a tokenizer that splits words itself; without it, "
        "text has to come split (subword-nmt apply-bpe)",
    )
    bert.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    bert.add_argument("--force", action="store_true", help="write into --out though there is something in it")
    bert.set_defaults(run=_bert)
    return parser


def _bert(args: argparse.Namespace) -> None:
    from macaron.legacy.bert import convert_file

    model = convert_file(args.checkpoint, args.dict, args.out, codes=args.bpe_codes, force=args.force)
    kind = type(model).__name__
    print(f"converted {args.checkpoint} ({kind}, {model.num_parameters():,} parameters) into folder {args.out}")


if __name__ == "__main__":
    raise SystemExit(main())
