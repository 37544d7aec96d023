"""Row 48: what somebody reads while the forms of others' answers are compiled, none of them seen before."""

import json
import time

from chaos_parts.row import Row
from chaos_parts.server import Bystander, Chat, Server, start_server

NUM_FORMS, NUM_FIELDS = 6, 250
MOST_GAP_MS = 50.0


def write_schema(number: int) -> dict[str, object]:
    """An object of many nested fields, of names that no other number has."""
    names = [f"field_{number}_{index}" for index in range(NUM_FIELDS)]
    leaf = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 50}, "b": {"type": "number"}}}
    return {"type": "object", "properties": dict.fromkeys(names, leaf), "required": names}


def ask_in_form(server: Server, number: int) -> Chat:
    """A question whose answer must have a form."""
    schema = {"name": "form", "schema": write_schema(number)}
    assert len(json.dumps(schema)) < 1 << 16
    return Chat(server, "Fill it in.", 2, response_format={"type": "json_schema", "json_schema": schema})


def measure() -> list[Row]:
    """Measure a reader alone, then beside forms."""
    with start_server() as server:
        ask_in_form(server, 0).read()
        bystander = Bystander(server)
        try:
            time.sleep(2.0)
            since = time.perf_counter()
            time.sleep(3.0)
            alone_ms = bystander.longest_gap_ms(since, time.perf_counter())
            since = time.perf_counter()
            for number in range(1, 1 + NUM_FORMS):
                ask_in_form(server, number).read()
            beside_ms = bystander.longest_gap_ms(since, time.perf_counter())
        finally:
            bystander.stop()
    return [
        Row(48, "longest gap alone", alone_ms, "ms"),
        Row(48, f"longest gap beside {NUM_FORMS} new forms", beside_ms, "ms", most=MOST_GAP_MS),
    ]
