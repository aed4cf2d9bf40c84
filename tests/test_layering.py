"""No module imports one of ours that the table does not name, and none loads models early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("medgrpo", "data_modules")

CORE = {"types", "prompts", "answers", "rewards", "advantages", "loss", "policy", "prefix", "rollout"}

# Module -> modules of ours that it may import. A new file needs a row; an arrow against the way of the data, a reason.
MAY_IMPORT: dict[str, set[str]] = {
    "medgrpo": set(),
    "medgrpo.types": set(),
    "medgrpo.prompts": {"medgrpo.types"},
    "medgrpo.answers": {"medgrpo.types", "medgrpo.open_answers"},
    "medgrpo.open_answers": set(),
    "medgrpo.graders": {"medgrpo.types", "medgrpo.answers"},
    "medgrpo.statistics": set(),
    "medgrpo.predictions": {"medgrpo.types", "medgrpo.answers"},
    "medgrpo.runs": {"medgrpo.types", "medgrpo.predictions"},
    "medgrpo.reasoning": {f"medgrpo.{name}" for name in ("types", "answers", "predictions")},
    "medgrpo.results": {
        *(f"medgrpo.{name}" for name in ("types", "answers", "predictions")),
        *(f"data_modules.{name}" for name in ("fields", "labels", "options", "readers")),
    },
    "medgrpo.rewards": {"medgrpo.types", "medgrpo.answers"},
    "medgrpo.advantages": set(),
    "medgrpo.loss": set(),
    "medgrpo.metrics": set(),
    "medgrpo.passes": set(),
    "medgrpo.vision_cache": {"medgrpo.types", "medgrpo.prefix"},
    "medgrpo.probe": {f"medgrpo.{name}" for name in ("types", "metrics", "prefix", "rollout", "sharding", "module")},
    "medgrpo.limits": {f"medgrpo.{name}" for name in ("types", "flops", "linear", "policy")},
    "medgrpo.linear": set(),
    "medgrpo.flops": {"medgrpo.types"},
    "medgrpo.policy": {"medgrpo", *(f"medgrpo.{name}" for name in ("types", "adapters", "linear"))},
    "medgrpo.prefix": {"medgrpo.types", "medgrpo.policy"},
    "medgrpo.static_decode": {"medgrpo.types"},
    "medgrpo.rollout": {f"medgrpo.{name}" for name in ("types", "policy", "linear", "prefix", "static_decode")},
    "medgrpo.evaluation": {
        *(f"medgrpo.{name}" for name in ("types", "answers", "open_answers", "blind", "predictions")),
        *(f"medgrpo.{name}" for name in ("statistics", "reasoning")),
    },
    "medgrpo.group_accuracy": {f"medgrpo.{name}" for name in ("types", "predictions", "evaluation")},
    "medgrpo.comparison": {f"medgrpo.{name}" for name in ("types", "predictions", "evaluation", "statistics")},
    "medgrpo.tables": {f"medgrpo.{name}" for name in ("evaluation", "comparison")},
    "medgrpo.policy_module": {
        *(f"medgrpo.{name}" for name in ("types", "policy", "prefix", "rollout", "predictions", "group_accuracy")),
        *(f"medgrpo.{name}" for name in ("sharding", "unfinished")),
    },
    "medgrpo.resume": {*(f"medgrpo.{name}" for name in ("types", "policy", "policy_module")), "data_modules.base"},
    "medgrpo.prediction_writer": {
        *(f"medgrpo.{name}" for name in ("types", "predictions", "runs", "resume", "evaluation", "results", "tables")),
        *(f"data_modules.{name}" for name in ("base", "curriculum", "priors")),
    },
    "medgrpo.eval_cli": {
        *(f"medgrpo.{name}" for name in ("types", "predictions", "runs", "results", "graders", "comparison", "tables")),
        "medgrpo.report.build",
    },
    "medgrpo.report": set(),
    "medgrpo.report.curves": {"medgrpo.types"},
    "medgrpo.report.grids": {"medgrpo.types", "medgrpo.runs", "medgrpo.evaluation"},
    "medgrpo.report.figures": {"medgrpo.report.curves", "medgrpo.report.grids"},
    "medgrpo.report.content": {
        f"medgrpo.{name}" for name in ("runs", "evaluation", "comparison", "reasoning", "tables")
    },
    "medgrpo.report.examples": {
        *(f"medgrpo.{name}" for name in ("types", "answers", "predictions", "runs", "evaluation", "statistics")),
        *(f"data_modules.{name}" for name in ("image_root", "images")),
    },
    "medgrpo.report.page": {"medgrpo.report.content", "medgrpo.report.examples"},
    "medgrpo.report.build": {
        *(f"medgrpo.{name}" for name in ("types", "runs", "evaluation", "comparison", "tables")),
        *(f"medgrpo.report.{name}" for name in ("curves", "grids", "figures", "content", "examples", "page")),
        "data_modules.convert",
    },
    "medgrpo.module": {
        f"medgrpo.{name}"
        for name in CORE | {"metrics", "passes", "policy_module", "vision_cache", "limits", "sharding", "unfinished"}
    },
    "medgrpo.callbacks": {"medgrpo.types", "medgrpo.answers"},
    "medgrpo.checkpoint": {f"medgrpo.{name}" for name in ("types", "runs", "unfinished", "checkpoint_file")},
    "medgrpo.unfinished": {"medgrpo.types"},
    "medgrpo.health": {"medgrpo.types", "medgrpo.answers"},
    "medgrpo.adapters": {"medgrpo.types", "medgrpo.runs"},
    "medgrpo.model_card": {"medgrpo.runs"},
    "medgrpo.export_check": {f"medgrpo.{name}" for name in ("types", "policy", "prefix", "prompts", "rollout")},
    "medgrpo.export": {
        "medgrpo",
        *(f"medgrpo.{name}" for name in ("types", "adapters", "export_check", "model_card", "policy")),
        *(f"medgrpo.{name}" for name in ("resume", "runs")),
    },
    "medgrpo.export_cli": {"medgrpo.types", "medgrpo.export"},
    "medgrpo.sharding": {"medgrpo.types", "medgrpo.policy"},
    "medgrpo.parameters": {"medgrpo.types"},
    "medgrpo.failures": {"medgrpo.types", "medgrpo.rewards"},
    "medgrpo.config_checks": {"medgrpo.types"},
    "data_modules.skipped": set(),
    "medgrpo.checkpoint_file": {"medgrpo.types"},
    "medgrpo.profiling": {"medgrpo.types", "medgrpo.metrics"},
    "medgrpo.blind": {"medgrpo.types"},
    "medgrpo.trainer_cli": {
        *(f"medgrpo.{name}" for name in ("types", "module", "callbacks", "checkpoint", "prediction_writer")),
        *(f"medgrpo.{name}" for name in ("profiling", "probe", "health", "parameters", "failures", "checkpoint_file")),
        "medgrpo.config_checks",
        *(f"data_modules.{name}" for name in ("base", "classes")),
    },
    "medgrpo.difficulty": {
        *(f"medgrpo.{name}" for name in ("types", "answers", "blind", "trainer_cli", "module", "policy", "runs")),
        *(f"medgrpo.{name}" for name in ("policy_module", "predictions", "prediction_writer", "resume")),
        *(f"data_modules.{name}" for name in ("base", "collate", "curriculum")),
    },
    "medgrpo.data_cli": {
        "medgrpo.types",
        "medgrpo.difficulty",
        *(f"data_modules.{name}" for name in ("audit", "audit_limits", "audit_page", "audit_text", "convert")),
        *(f"data_modules.{name}" for name in ("debias", "formats", "image_hashes", "image_root")),
        *(f"data_modules.{name}" for name in ("images", "leaks", "split")),
    },
    "medgrpo.cli": {f"medgrpo.{name}_cli" for name in ("data", "eval", "export", "trainer")},
    "medgrpo.demo": set(),
    "medgrpo.demo.model": {"medgrpo.types"},
    "data_modules.labels": set(),
    "data_modules.options": {"medgrpo.types", "medgrpo.blind"},
    "data_modules.fields": {"medgrpo.types"},
    "data_modules.tables": {"medgrpo.types"},
    "data_modules.rows": {"medgrpo.types", "data_modules.tables"},
    "data_modules.exam_fields": {"medgrpo.types", "data_modules.fields", "data_modules.options"},
    "data_modules.readers": {"medgrpo.types", *(f"data_modules.{n}" for n in ("fields", "labels", "options"))},
    "data_modules.exam_readers": {
        "medgrpo.types",
        *(f"data_modules.{n}" for n in ("exam_fields", "fields", "options")),
    },
    "data_modules.formats": {
        "medgrpo.types",
        *(f"data_modules.{n}" for n in ("rows", "fields", "labels", "readers", "exam_readers")),
    },
    "data_modules.grey": {"medgrpo.types"},
    "data_modules.aspect": {"medgrpo.types"},
    "data_modules.dicom": {"medgrpo.types", "data_modules.aspect", "data_modules.grey"},
    "data_modules.nifti": {"medgrpo.types", "data_modules.aspect", "data_modules.grey"},
    "data_modules.image_root": {"medgrpo.types"},
    "data_modules.images": {
        "medgrpo.types",
        *(f"data_modules.{name}" for name in ("dicom", "nifti", "grey", "image_root", "rows")),
    },
    "data_modules.image_hashes": {"medgrpo.types", "data_modules.image_root", "data_modules.images"},
    "data_modules.image_cache": {"data_modules.image_root"},
    "data_modules.curriculum": {"medgrpo.types", "data_modules.leaks"},
    "data_modules.collate": {
        *(f"medgrpo.{name}" for name in ("types", "prompts")),
        *(f"data_modules.{name}" for name in ("image_cache", "image_root", "images", "skipped")),
    },
    "data_modules.loading": {
        "medgrpo.types",
        *(f"data_modules.{name}" for name in ("collate", "curriculum", "skipped")),
    },
    "data_modules.base": {
        *(f"medgrpo.{name}" for name in ("types", "prompts")),
        *(f"data_modules.{name}" for name in ("collate", "curriculum", "formats", "labels")),
        *(f"data_modules.{name}" for name in ("image_root", "images", "loading", "priors", "selection", "views")),
        "data_modules.skipped",
    },
    "data_modules.selection": {"medgrpo.types", *(f"data_modules.{name}" for name in ("formats", "labels", "rows"))},
    "data_modules.views": {"medgrpo.types", "data_modules.fields", "data_modules.options"},
    "data_modules.priors": {"medgrpo.types", "medgrpo.blind", "data_modules.leaks"},
    "data_modules.split": {"medgrpo.types", "data_modules.leaks", "data_modules.options"},
    "data_modules.debias": {
        "medgrpo.types",
        *(f"data_modules.{name}" for name in ("fields", "labels", "options", "split")),
    },
    "data_modules.convert": {
        "medgrpo.types",
        *(f"data_modules.{name}" for name in ("formats", "image_hashes", "rows")),
    },
    "data_modules.leaks": {"medgrpo.types", "data_modules.image_hashes", "data_modules.image_root"},
    "data_modules.repeats": {"medgrpo.types", *(f"data_modules.{name}" for name in ("formats", "leaks", "options"))},
    "data_modules.audit": {
        *(f"medgrpo.{name}" for name in ("types", "blind")),
        *(f"data_modules.{name}" for name in ("formats", "image_hashes", "leaks", "repeats")),
    },
    "data_modules.audit_limits": {"medgrpo.types"},
    "data_modules.audit_text": {"medgrpo.blind", *(f"data_modules.{name}" for name in ("audit", "leaks", "repeats"))},
    "data_modules.audit_page": {
        "medgrpo.types",
        *(f"data_modules.{name}" for name in ("audit", "audit_text", "convert", "leaks", "repeats")),
    },
    "data_modules.phantom": {"medgrpo.types", "data_modules.base"},
}
THIN = ("ct", "mri", "xray", "ultrasound", "fundus", "dermoscopy", "microscopy", "oct", "tasks")
MAY_IMPORT |= {f"data_modules.{name}": {"data_modules.base"} for name in THIN}
MAY_IMPORT["data_modules.classes"] = {f"data_modules.{name}" for name in ("base", *THIN)}
MAY_IMPORT["data_modules"] = {"data_modules.classes"}

# Modules of pure functions and plain data -> everything that they may import besides the standard library and ours.
PURE: dict[str, set[str]] = {
    "medgrpo.types": {"torch"},
    "medgrpo.advantages": {"torch"},
    "medgrpo.loss": {"torch"},
    "medgrpo.metrics": {"torch"},
    "medgrpo.flops": {"torch"},
    "medgrpo.rewards": {"torch"},
    "medgrpo.prompts": set(),
    "medgrpo.answers": set(),
    "medgrpo.open_answers": set(),
    "medgrpo.graders": set(),
    "medgrpo.predictions": set(),
    "medgrpo.runs": set(),
    "medgrpo.reasoning": set(),
    "medgrpo.comparison": set(),
    "medgrpo.tables": set(),
    "medgrpo.statistics": {"numpy"},
    "medgrpo.evaluation": set(),
    "medgrpo.report.grids": set(),
    "medgrpo.report.content": set(),
    "medgrpo.blind": set(),
    "data_modules.split": set(),
    "data_modules.debias": set(),
    "data_modules.curriculum": {"numpy"},
    "data_modules.labels": set(),
    "data_modules.options": set(),
    "data_modules.fields": set(),
    "data_modules.readers": set(),
    "data_modules.exam_readers": set(),
    "data_modules.formats": set(),
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imported(source: str) -> set[str]:
    """Full names of what a module imports anywhere in it, functions and ``TYPE_CHECKING`` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # ``from medgrpo import loss`` imports medgrpo.loss; ``from . import loss`` has no module.
            module = node.module or ""
            children = {f"{module}.{alias.name}" for alias in node.names}
            names |= {"." * node.level + module} if node.level else children & set(FILES) or {module}
    return names


def forbidden(module: str, source: str) -> set[str]:
    """Imports of ``source`` that ``module`` may not have."""
    allowed = MAY_IMPORT[module]
    wrong = {name for name in imported(source) if name.startswith(".")}
    wrong |= {name for name in imported(source) if name.split(".")[0] in OURS and name not in allowed}
    if module in PURE:
        outside = {name for name in imported(source) if name.split(".")[0] not in (*OURS, *sys.stdlib_module_names)}
        wrong |= {name for name in outside if name.split(".")[0] not in PURE[module]}
    return wrong


def test_table_has_a_row_for_every_file_and_no_other():
    assert set(MAY_IMPORT) == set(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_table(module):
    assert not forbidden(module, FILES[module].read_text(encoding="utf-8"))


def test_table_has_no_circle():
    left = dict(MAY_IMPORT)
    while left:
        free = [module for module, imports in left.items() if not imports & set(left)]
        assert free, f"circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("medgrpo.loss", "from medgrpo.types import Record", {"medgrpo.types"}),
        ("medgrpo.loss", "import medgrpo.module", {"medgrpo.module"}),
        ("medgrpo.loss", "def f():\n    from medgrpo import policy", {"medgrpo.policy"}),
        ("medgrpo.loss", "from torch import Tensor", set()),
        ("medgrpo.loss", "import numpy as np", {"numpy"}),
        ("medgrpo.answers", "import torch", {"torch"}),
        ("medgrpo.answers", "from . import types", {"."}),
        ("medgrpo.answers", "import re\nfrom medgrpo.types import Record", set()),
        ("data_modules.ct", "from medgrpo.module import GRPOModule", {"medgrpo.module"}),
    ],
)
def test_a_wrong_arrow_is_seen(module, source, wrong):
    assert forbidden(module, source) == wrong


@pytest.mark.parametrize("command", ["grade", "compare", "report", "data"])
def test_commands_without_a_model_answer_at_once(command):
    code = (
        "import sys\nfrom medgrpo.cli import main\n"
        f"sys.argv = ['medgrpo', {command!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        "    print([name for name in ('lightning', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_commands_start_without_loading_models():
    """``medgrpo --help`` answers at once. (Lightning's torchmetrics imports the top level of transformers.)"""
    heavy = ("peft", "bitsandbytes", "trl", "datasets", "transformers.modeling_utils", "transformers.models.qwen2_vl")
    code = (
        "import sys, data_modules.classes, medgrpo, medgrpo.cli\n"
        f"print([name for name in {heavy} if any(loaded.startswith(name) for loaded in sys.modules)])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
