"""Compiles a grammar in a process of its own: `python -P -m tilewise.inputs.text.grammar_worker`.

The grammar comes on stdin, and what is wrong with it goes to stdout. A compiler that is too slow or too large ends.
"""

import contextlib
import resource
import signal
import sys

from tilewise.inputs.text.grammar import MAX_COMPILE_S, TOO_COSTLY, validate, wrap_tokenizer

_MAX_MEMORY_BYTES = 1 << 30


def main() -> None:
    """Compile the grammar on stdin within bounds of memory and time, and print what is wrong with it."""
    grammar = sys.stdin.buffer.read().decode()
    wrap_tokenizer(None)  # imports what is needed, at no form's cost
    with contextlib.suppress(OSError, ValueError):  # macOS refuses RLIMIT_AS
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, MAX_COMPILE_S)
    try:
        fault = validate(grammar)
    except MemoryError:
        fault = TOO_COSTLY
    sys.stdout.write(fault)


if __name__ == "__main__":
    main()
