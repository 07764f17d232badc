"""Draw behind a web address: python web.py 8000, then open http://127.0.0.1:8000/?prompt=a+red+heart"""

import io
import sys
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

import mmada_lite

model = mmada_lite.load()


def application(environ, start_response):
    """A WSGI application; it draws one picture at a time, so give each process of a server its own model."""
    prompt = parse_qs(environ["QUERY_STRING"]).get("prompt", [""])[0]
    try:
        picture = model.paint(prompt).picture
    except mmada_lite.Error as error:
        start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
        return [str(error).encode()]
    file = io.BytesIO()
    picture.save(file, "PNG")
    start_response("200 OK", [("Content-Type", "image/png")])
    return [file.getvalue()]


with make_server("127.0.0.1", int(sys.argv[1] if sys.argv[1:] else 8000), application) as server:
    print(f"http://127.0.0.1:{server.server_port}/?prompt=a+red+heart", flush=True)
    server.serve_forever()
