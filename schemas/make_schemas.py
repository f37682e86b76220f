"""Write the JSON Schemas of the values of `<stream>.manifest` and `<stream>.experiments` from the models in
featurestream/manifest.py, health.py, experiments.py and validation.py.

Run it after a change there, and look at the difference: a field that is gone, or means something else, breaks readers
in other languages (README.md, "How it evolves"). `feature-record-v1.schema.json` is written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

from featurestream.experiments import MetricsChunk, RunRecord
from featurestream.health import Canary, Health
from featurestream.manifest import End, Lease, Manifest, PassRecord, Request, RetentionWarning, Share
from featurestream.validation import Validation

MODELS = {
    "manifest": Manifest,
    "pass": PassRecord,
    "share": Share,
    "lease": Lease,
    "end": End,
    "canary": Canary,
    "health": Health,
    "retention": RetentionWarning,
    "request": Request,
    "run": RunRecord,
    "metrics": MetricsChunk,
    "validation": Validation,
}


def main() -> None:
    """Write the files beside this one."""
    for name, model in MODELS.items():
        file = f"{name}-v1.schema.json"
        marks = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": file}
        text = json.dumps(marks | model.model_json_schema(), indent=2, ensure_ascii=False)
        (Path(__file__).parent / file).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
