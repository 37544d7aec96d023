"""How a server writes its log: a line a record, for people or as JSON."""

import json
import logging
import time

from tilewise.terminal import UNPRINTABLE


class LineFormatter(logging.Formatter):
    """One line a record, whatever a message holds; the facts of an access line as fields of their own.

    For people a traceback follows, its lines set in, so that none of them looks like a record.
    """

    def __init__(self, *, is_json: bool) -> None:
        """As JSON objects, or for people."""
        super().__init__()
        self._is_json = is_json

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        if self._is_json:
            facts = record.args if isinstance(record.args, dict) else {}
            head = {"time": stamp, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
            return json.dumps({**head, **facts, **({"exception": trace} if trace else {})}, default=str)
        message = record.getMessage().translate(UNPRINTABLE).replace("\n", " ")
        lines = ("", *trace.translate(UNPRINTABLE).splitlines()) if trace else ()
        return f"{stamp} {record.levelname:7} {record.name}: {message}" + "\n    ".join(lines)


def set_up_logging(level: int, log_format: str) -> None:
    """Write this package's records from `level` on to stderr, and others' warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(is_json=log_format == "json"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("tilewise").setLevel(level)
