"""The page's own API server: `python -P -m tilewise.page.child serve api_server …`, started by `page.server`.

It is the command line, with a watch on the page: once that is gone, in whatever way, nobody has the key any more and
this process ends at once. Engine and decoders then notice in turn. The page's folder of uploads goes with it.
"""

import os
import select
import shutil
import sys
import threading

_POLL_S = 0.25


def _end_with_page(page_id: int) -> None:
    # NOTE: neither sign is enough: a fork of the page holds stdin open, and the page may end before `getppid`.
    while os.getppid() == page_id and not select.select([0], [], [], _POLL_S)[0]:
        pass
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    os._exit(1)


def _run_command_line() -> int:
    from tilewise.cli.main import main

    return main()


if __name__ == "__main__":
    threading.Thread(target=_end_with_page, args=(os.getppid(),), name="tilewise-page-watch", daemon=True).start()
    sys.exit(_run_command_line())
