"""A study's server in a thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluation.preference.app import StudyPage, make_app
from evaluation.preference.server import StudyServer, choose_hosts
from evaluation.preference.store import Store
from evaluation.runs.run import Run


@contextmanager
def serving(
    path: Path, runs: list[Run], check_share: float = 0.3, port: int = 0, busy_seconds: float = 5.0
) -> Iterator[int]:
    """Serve the study in the file `path`. Yields the port."""
    study = {"runs": sorted(run.name for run in runs), "prompts_sha256": runs[0].manifest["prompts_sha256"]}
    store = Store(path, study, len(runs[0].prompts), busy_seconds)
    app = make_app(StudyPage(store, runs, 4, check_share), choose_hosts("127.0.0.1"))
    server = StudyServer(app, "127.0.0.1", port)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join()
