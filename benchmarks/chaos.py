"""What one client can do to another: the attacks of SECURITY.md in short forms, each figure beside what is asked.

    OMP_NUM_THREADS=1 python benchmarks/chaos.py [PART ...]

PART is one of those below; without any, all are measured, which takes less than six minutes on two cores. On a machine
that is busy with other work figures say little. Ends in one JSON line, with status 1 where something is not met.
"""

import argparse
import json
import time
from dataclasses import asdict

from chaos_parts import bodies, decoders, fairness, forms, large_pictures, uploads
from serving_parts.machine import describe_machine

PARTS = {
    "large_pictures": large_pictures.measure,
    "decoders": decoders.measure,
    "bodies": bodies.measure,
    "uploads": uploads.measure,
    "forms": forms.measure,
    "fairness": fairness.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS], help=", ".join(PARTS))
    started_at = time.perf_counter()
    rows = []
    for part in parser.parse_args().parts or PARTS:
        for row in PARTS[part]():
            print(row.show(), flush=True)
            rows.append(row)
    shown = [{**asdict(row), "measured": round(row.measured, 2), "is_met": row.is_met} for row in rows]
    took_s = round(time.perf_counter() - started_at)
    print(json.dumps({"benchmark": "chaos", **describe_machine("cpu"), "took_s": took_s, "rows": shown}))
    return 0 if all(row.is_met for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
