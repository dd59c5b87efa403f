"""A page as Chromium shows it: Qt WebEngine without a screen.

    python -m tests.reporting.browser PAGE [PICTURE]

Prints the document that scripts have left, and writes a picture of the window. Exits with code 77 where Qt WebEngine is
missing, or a library of the system that it needs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MISSING = 77
_FLAGS = "--no-sandbox --disable-gpu --single-process"  # as in containers, which have no user namespaces
_SECONDS = 240


def main() -> None:
    """Show a page and print it."""
    os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": _FLAGS}
    try:
        from PyQt6.QtCore import QTimer, QUrl
        from PyQt6.QtWebEngineWidgets import QWebEngineView
        from PyQt6.QtWidgets import QApplication
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    page, *picture = sys.argv[1:]
    application, view = QApplication(sys.argv[:1]), QWebEngineView()
    view.resize(1150, 2000)

    def print_document(document: str) -> None:
        print(document, flush=True)
        if picture:
            view.grab().save(picture[0])
        # Chromium in one process does not end in order.
        os._exit(0)

    def show(is_loaded: bool) -> None:
        if not is_loaded:
            sys.exit(f"{page} cannot be loaded")
        QTimer.singleShot(1000 if picture else 0, lambda: view.page().toHtml(print_document))

    view.loadFinished.connect(show)
    view.load(QUrl.fromLocalFile(str(Path(page).absolute())))
    view.show()
    QTimer.singleShot(1000 * _SECONDS, lambda: os._exit(1))
    application.exec()


if __name__ == "__main__":
    main()
