"""An HTTPS server that says which credential reached it; played by the tests, never part of the product.

Prints one JSON line per request to the file given, so that a test can see what left the egress proxy.
"""

import http.server
import json
import ssl
import sys
import threading


def serve(address, port, certificate, key, seen):
    """Starts the server in the background and returns it; `seen` is called with each request's facts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            facts = {"path": self.path, "authorization": self.headers.get("Authorization", "")}
            seen(facts)
            body = json.dumps({"path": self.path, "has_authorization": bool(facts["authorization"])}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    listen, certificate, key, log = sys.argv[1:5]
    host, _, number = listen.rpartition(":")
    with open(log, "a", buffering=1) as out:
        serve(host, int(number), certificate, key, lambda facts: print(json.dumps(facts), file=out))
        print("ready", flush=True)
        threading.Event().wait()
