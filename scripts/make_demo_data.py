"""Draw the demo's questions and images: ``python scripts/make_demo_data.py FOLDER --seed 0``.

Writes ``train.jsonl``, ``test.jsonl`` and the images they name. Training and test images come from different seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from data_modules.formats import write_jsonl
from data_modules.phantom import phantom

SPLITS = {"train": 2048, "test": 400}
"""Questions of each split, unless the command line says otherwise."""


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for split, number in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=number, help=f"questions; default {number}")
    args = parser.parse_args()
    for index, split in enumerate(SPLITS):
        number = getattr(args, split)
        records = []
        for record, image in phantom(seed=len(SPLITS) * args.seed + index, number=number, name=split):
            path = args.folder / record.images[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            records.append(record)
        write_jsonl(args.folder / f"{split}.jsonl", records)


if __name__ == "__main__":
    main()
