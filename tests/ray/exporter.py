"""A proxy before an exporter of Ray's that keeps every page it hands out, so that what the adjustment log
cites can be held against what was read."""

import http.server
import re
import threading
import time
import urllib.request


class Recorder:
    """Pages of one exporter, with the moment (Unix seconds) each was handed out. Use as a context."""

    def __init__(self, target):
        self.pages = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                try:
                    with urllib.request.urlopen(f"http://{target}{self.path}", timeout=5) as page:
                        status, kind, body = page.status, page.headers["Content-Type"], page.read()
                except OSError:
                    status, kind, body = 502, "text/plain", b""
                recorder.pages.append((time.time(), body.decode()))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def target(self):
        return f"127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def values(self, family, label=""):
        """`(moment, largest value)` of a family on every page that has it."""
        line = re.compile(rf"^{family}\{{[^\n]*{label}[^\n]*\}} ([\d.eE+-]+)", re.M)
        found = ((moment, [float(value) for value in line.findall(page)]) for moment, page in self.pages)
        return [(moment, max(values)) for moment, values in found if values]
