"""An HTTP server that takes whatever is posted to it, as a receiver of alerts does, and keeps it."""

import http.server
import threading
import time


class Receiver:
    """Everything posted, as `(moment, path, headers, body)`, from when it was made until it is closed."""

    def __init__(self, port):
        taken = self.taken = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                taken.append((time.monotonic(), self.path, self.headers.items(), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
