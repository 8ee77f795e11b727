"""Run the experiments of "Agree to Disagree" and write what came out beside what was published.

``python -m scripts.agree_to_disagree --store store --out reproduction --page docs/reproduction/agree_to_disagree.md``
makes what the store lacks, a page for each experiment in ``--out``, and the tables between the two marks of
``--page``. With ``--only-tables`` nothing is made: rows that are not there say *not run*. The rows of MIMIC-CXR are
run where the folder of the data sets holds that one.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from consilience.cli.experiments import data_folder
from consilience.errors import ConsilienceError
from consilience.experiment.config import load
from consilience.experiment.store import Store
from scripts.agree_to_disagree.made import Made
from scripts.agree_to_disagree.published import MIMIC
from scripts.agree_to_disagree.tables import tables

FOLDER = Path(__file__).parents[2] / "experiments" / "agree_to_disagree"
MARKS = "<!-- tables: written by scripts/agree_to_disagree -->", "<!-- end of tables -->"


def path_of(file: str) -> Path:
    """The file of an experiment; that of the radiographs lies beside the folder."""
    return (FOLDER.parent if file == MIMIC else FOLDER) / f"{file}.toml"


def main() -> int:
    """Make what is missing, then write pages and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="desk", choices=("smoke", "desk", "paper"))
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--on", default="processes:2")
    parser.add_argument("--device", default="cpu", help="where torch computes: cpu, cuda")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: CONSILIENCE_DATA)")
    parser.add_argument("--page", type=Path, help="a Markdown file whose marked part is replaced by the tables")
    parser.add_argument("--only", nargs="*", help="names of files, without their ending")
    parser.add_argument("--only-tables", action="store_true")
    chosen = parser.parse_args()
    data = data_folder(chosen.data)
    files = sorted(file.stem for file in FOLDER.glob("*.toml") if file.stem != "common")
    if data is not None and any((data / name).is_dir() for name in (MIMIC, MIMIC.replace("_", "-"))):
        files.append(MIMIC)
    chosen.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for file in [] if chosen.only_tables else (chosen.only or files):
        words = [str(path_of(file)), "--store", str(chosen.store), "--profile", chosen.profile]
        words += [] if data is None else ["--data", str(data)]
        command = [sys.executable, "-m", "consilience"]
        where = ["--on", chosen.on, "--device", chosen.device]
        for verb, rest in (("run", where), ("report", ["--out", str(chosen.out / f"{file}.html")])):
            if subprocess.run([*command, verb, *words, *rest], check=False).returncode:
                failed.append(f"{verb} {file}")
    store, made = Store(chosen.store), dict[str, Made]()
    for file in files:
        try:
            made[file] = Made(load(path_of(file), profile=chosen.profile, data=data), store)
        except ConsilienceError as error:
            print(error, file=sys.stderr)
            if file != MIMIC:  # whose rows alone are then missing
                return 1
            failed.append(f"load {file}")
    text = tables(made)
    (chosen.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    if chosen.page is not None:
        whole = chosen.page.read_text("utf-8")
        part = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
        chosen.page.write_text(part.sub(lambda _: f"{MARKS[0]}\n\n{text}\n\n{MARKS[1]}", whole), encoding="utf-8")
    print(chosen.out / "tables.md")
    if failed:
        print(f"failed, and missing in the tables: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
